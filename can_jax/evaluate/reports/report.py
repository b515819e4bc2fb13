"""The HTML page of one evaluation, `report.html`."""

import json
import re
from typing import Any

from can_jax.evaluate.page import Html, render
from can_jax.evaluate.reports.meanings import meanings_of

SECONDS = "seconds"  # The training time of the protocol `classify`, stored in ``chosen``.
HEADLINES = 8  # The maximum number of metrics shown in large type.
# Detailed metrics, which `headlines` omits.
DETAIL = re.compile(r"/\d/top1$|_k\d+_t|_std$|_fixed_|_largest_class$")
PERCENT = re.compile(r"(.*/)?(top\d.*|\d+shot(_std)?|ece|mce)")  # Metrics in percent.


def headlines(metrics: dict[str, float]) -> dict[str, float]:
    """Return the main metrics; omit details such as the accuracy at each severity."""
    return {name: value for name, value in metrics.items() if not DETAIL.search(name)}


def unit_of(metric: str) -> str:
    """Return `` %`` for a metric in percent, else an empty string."""
    return " %" if PERCENT.fullmatch(metric) else ""


def shown_interval(results: dict[str, Any], metric: str) -> str:
    """Return the bootstrap interval of a metric as text, or an empty string if it has none."""
    low, high = results.get("intervals", {}).get(metric, (None, None))
    return "" if low is None else f"{low:.2f} to {high:.2f}"


def splits_of(results: dict[str, Any]) -> list[str]:
    """Return a phrase for each split of an evaluation: its role, its name and its size."""
    phrases = []
    for role, digest in results["data"].get("fingerprints", {}).items():
        count = results["examples"].get(role)
        size = f", {count:,} images" if isinstance(count, int) else ""
        phrases.append(f"{role} split {digest.rsplit(':', 1)[0]!r}{size}")
    return phrases


def chosen_of(results: dict[str, Any]) -> str:
    """Return a text that lists the hyperparameters selected on held-out examples."""
    return ", ".join(f"{k} = {v}" for k, v in results["chosen"].items() if k != SECONDS)


def curves_of(results: dict[str, Any], run: str) -> dict[str, dict[int, float]]:
    """Return a dict from curve label to curve: the accuracy at each severity, averaged over
    corruptions.

    Severity 0 means uncorrupted images. Accuracies outside 0 to 100 are omitted.

    Args:
        results: The content of `results.json`.
        run: The name of the evaluation, which labels the curve of the test split. Curves of other
            corrupted test sets are labeled with the names of the evaluation and of the test set.
    """
    scores: dict[str, dict[int, list[float]]] = {}
    for name, value in results["metrics"].items():
        parts = name.split("/")  # such as [TEST_SET/]CORRUPTION/SEVERITY/top1
        at_severity = len(parts) > 2 and re.fullmatch("[0-9]", parts[-2]) and parts[-1] == "top1"
        if at_severity and 0 <= value <= 100:
            curve = scores.setdefault(" ".join([run, *parts[:-3]]), {})
            curve.setdefault(int(parts[-2]), []).append(value)
    accuracy = results["metrics"].get("clean/top1", -1.0)
    clean = {0: accuracy} if 0 <= accuracy <= 100 else {}
    return {
        name: clean | {severity: sum(v) / len(v) for severity, v in sorted(curve.items())}
        for name, curve in scores.items()
    }


def weights_of(results: dict[str, Any]) -> str:
    """Return the path, the step and the checksum of the weights of an evaluation."""
    checkpoint = results["checkpoint"]
    step = "" if checkpoint["step"] is None else f", step {checkpoint['step']}"
    return f"{checkpoint['path']}{step} ({checkpoint['sha256'][:12]})"


def data_of(results: dict[str, Any]) -> str:
    """Return a text with the location of an evaluation's data and the fingerprint of each split."""
    splits = results["data"].get("fingerprints", {}).items()
    return ", ".join([location_of(results), *(f"{name} {digest}" for name, digest in splits)])


def location_of(results: dict[str, Any]) -> str:
    """Return the source, the name and the path of an evaluation's data, separated by spaces."""
    data = results["data"]
    return " ".join(str(data[key]) for key in ("source", "name", "path") if data.get(key))


def tested_on(results: dict[str, Any], metric: str) -> frozenset[str]:
    """Return the fingerprints of the test examples of an evaluation or of one of its metrics.

    For a mean over corruptions, the result also contains a phrase that names the corruptions and
    severities.

    Args:
        results: The content of `results.json`.
        metric: The name of a metric; empty for the test examples of the evaluation.
    """
    digests = results["data"].get("fingerprints", {})
    own = metric.split("/")[0]  # a test set of the protocol robustness, if it has a fingerprint
    if own in digests.keys() - {"train", "test"}:
        tested = {digests[own]}
    else:
        tested = {digests[name] for name in digests if name.split("/")[-1] == "test"}
    if mean := re.fullmatch("(.*/)?(corrupted/top1|mce)", metric):
        corrupted = re.compile(re.escape(mean[1] or "") + "([a-z_]+)/([0-9])")
        found = [match for name in results["examples"] if (match := corrupted.fullmatch(name))]
        names, severities = (sorted({match[i] for match in found}) for i in (1, 2))
        if found:
            tested.add(f"{', '.join(names)}, severity {', '.join(severities)}")
    return frozenset(tested)


def robustness_chart(curves: dict[str, dict[int, float]]) -> Html | str:
    """Return a chart of the curves from `curves_of`, or an empty string if there are none."""
    if not curves:
        return ""
    from can_jax.evaluate.reports.charts import curve_chart  # importing matplotlib takes 0.7 s

    return curve_chart(curves)


def report_of(results: dict[str, Any], pictures: dict[str, Html]) -> str:
    """Return the HTML page of one evaluation.

    Args:
        results: The content of `results.json`.
        pictures: The images of the page as HTML elements, by title.
    """
    metrics, intervals = results["metrics"], results.get("intervals", {})
    curves = curves_of(results, "this run")
    facts = {key: results[key] for key in ("checkpoint", "data", "chosen", "protocol")}
    return render(
        "evaluation.html",
        results=results,
        data=location_of(results),
        splits=splits_of(results),
        chosen=chosen_of(results),
        seconds=results["chosen"].get(SECONDS),
        weights=weights_of(results),
        meanings=meanings_of(list(headlines(metrics))[:HEADLINES]),
        warnings=results.get("warnings", ()),
        cards=[
            {"name": name, "value": value, "unit": unit_of(name)}
            | {"interval": shown_interval(results, name)}
            for name, value in list(headlines(metrics).items())[:HEADLINES]
        ],
        curves=robustness_chart(curves),
        pictures=pictures,
        metrics=[
            {"metric": name + unit_of(name), "value": value}
            | ({"95 % interval": shown_interval(results, name)} if intervals else {})
            for name, value in metrics.items()
        ],
        examples=[{"examples": k, "count": count} for k, count in results["examples"].items()],
        most=HEADLINES,
        facts=json.dumps(facts, indent=2),
    )
