"""The HTML page of one evaluation, `report.html`, and the comparison of several evaluations."""

import json
import re
from typing import Any

from can_jax.evaluate.page import Html, render

HEADLINES = 8  # The number of metrics shown in large type.
DETAIL = re.compile(r"/\d/top1$|_k\d+_t|_std$")  # Metrics that others summarize.


def headlines(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics without details such as the accuracy at each severity."""
    return {name: value for name, value in metrics.items() if not DETAIL.search(name)}


def curves_of(results: dict[str, Any], run: str) -> dict[str, dict[int, float]]:
    """Return the mean accuracy over all corruptions at each severity; severity 0 is uncorrupted.

    Values that are not a percentage are left out.

    Args:
        results: The content of `results.json`.
        run: The name of the run, which labels the curve of corruptions computed on the test split.
            The curve of a distributed set is labeled with that set's name too.
    """
    scores: dict[str, dict[int, list[float]]] = {}
    for name, value in results["metrics"].items():
        parts = name.split("/")  # An optional set, corruption, severity and metric.
        severity = len(parts) > 2 and parts[-1] == "top1" and re.fullmatch("[0-9]", parts[-2])
        if severity and 0 <= value <= 100:
            curve = scores.setdefault(" ".join([run, *parts[:-3]]), {})
            curve.setdefault(int(parts[-2]), []).append(value)
    accuracy = results["metrics"].get("clean/top1", -1.0)
    clean = {0: accuracy} if 0 <= accuracy <= 100 else {}
    return {
        name: clean | {severity: sum(v) / len(v) for severity, v in sorted(curve.items())}
        for name, curve in scores.items()
    }


def data_of(results: dict[str, Any]) -> str:
    """Return a description of an evaluation's data: its location, and split fingerprints."""
    data = results["data"]
    location = " ".join(str(data[key]) for key in ("source", "name", "path") if data.get(key))
    splits = (f"{name} {digest}" for name, digest in data.get("fingerprints", {}).items())
    return ", ".join([location, *splits])


def tested_on(results: dict[str, Any]) -> frozenset[str]:
    """Return the fingerprints of the test examples of an evaluation."""
    digests = results["data"].get("fingerprints", {})
    return frozenset(digests[name] for name in digests if name.split("/")[-1] == "test")


def robustness_chart(curves: dict[str, dict[int, float]]) -> Html | str:
    """Return the chart of `curves_of` several runs; empty without a curve."""
    if not curves:
        return ""
    from can_jax.evaluate.reports.charts import curve_chart  # imports matplotlib, in 0.7 s

    return curve_chart(curves)


def report_of(results: dict[str, Any], pictures: dict[str, Html]) -> str:
    """Return the HTML page of one evaluation.

    Args:
        results: The content of `results.json`.
        pictures: The HTML elements of pictures, by title.
    """
    metrics = results["metrics"]
    curves = curves_of(results, "this run")
    facts = {key: results[key] for key in ("checkpoint", "data", "chosen", "protocol")}
    return render(
        "evaluation.html",
        results=results,
        data=data_of(results),
        warnings=results.get("warnings", ()),
        cards=list(headlines(metrics).items())[:HEADLINES],
        curves=robustness_chart(curves),
        pictures=pictures,
        metrics=[{"metric": name, "value": value} for name, value in metrics.items()],
        examples=[{"examples": k, "count": count} for k, count in results["examples"].items()],
        most=HEADLINES,
        facts=json.dumps(facts, indent=2),
    )


def comparison(runs: dict[str, dict[str, Any]]) -> str:
    """Return the HTML page that compares several evaluations, given their results by name."""
    names = dict.fromkeys(name for r in runs.values() for name in r["metrics"])
    metrics = [
        {"metric": name} | {run: r["metrics"].get(name, "") for run, r in runs.items()}
        for name in names
    ]
    facts = [
        {
            "run": name, "protocol": r["protocol"]["protocol"], "step": r["checkpoint"]["step"],
            "weights": r["checkpoint"]["sha256"][:12], "checkpoint": r["checkpoint"]["path"],
            "features": r["protocol"]["features"], "data": data_of(r),
            "chosen": json.dumps(r["chosen"]),
        }
        for name, r in runs.items()
    ]  # fmt: skip
    warnings = [
        {"run": name, "warning": text} for name, r in runs.items() for text in r.get("warnings", ())
    ]
    curves = {k: v for name, r in runs.items() for k, v in curves_of(r, name).items()}
    return render(
        "comparison.html",
        names=list(runs),
        warnings=warnings,
        tests=len(set(map(tested_on, runs.values()))),
        curves=robustness_chart(curves),
        metrics=metrics,
        runs=facts,
    )
