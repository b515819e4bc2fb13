"""The HTML page of one evaluation, `report.html`, and the comparison of several evaluations."""

import itertools
import json
import re
from typing import Any

from matplotlib.figure import Figure

from can_jax.evaluate.page import COLOURS, Html, chart, chart_style, render
from can_jax.utils.errors import printable

HEADLINES = 8  # The number of metrics shown in large type.
DETAIL = re.compile(r"/\d/top1$|_k\d+_t|_std$")  # Metrics that others summarize.


def headlines(metrics: dict[str, float]) -> dict[str, float]:
    """Return the summary metrics, without those that others summarize."""
    return {name: value for name, value in metrics.items() if not DETAIL.search(name)}


def curves_of(results: dict[str, Any], run: str) -> dict[str, dict[int, float]]:
    """Return the mean accuracy over all corruptions at each severity; severity 0 is uncorrupted.

    Args:
        results: The content of `results.json`.
        run: The name of the run, which labels the curve of corruptions computed on the test split.
            The curve of a distributed set is labeled with that set's name too.
    """
    scores: dict[str, dict[int, list[float]]] = {}
    for name, value in results["metrics"].items():
        parts = name.split("/")  # An optional set, corruption, severity and metric.
        if len(parts) > 2 and parts[-1] == "top1" and parts[-2].isdigit():
            curve = scores.setdefault(" ".join([run, *parts[:-3]]), {})
            curve.setdefault(int(parts[-2]), []).append(value)
    clean = {0: results["metrics"]["clean/top1"]} if "clean/top1" in results["metrics"] else {}
    return {
        name: clean | {severity: sum(v) / len(v) for severity, v in sorted(curve.items())}
        for name, curve in scores.items()
    }


def curve_chart(curves: dict[str, dict[int, float]]) -> Html:
    """Draw accuracy against severity, one line for each curve."""
    top = max(value for curve in curves.values() for value in curve.values())
    severities = sorted({severity for curve in curves.values() for severity in curve})
    with chart_style():
        figure = Figure(figsize=(8.2, 2.9))
        axis = figure.subplots()
        lines = [
            axis.plot(list(curve), list(curve.values()), color=colour, lw=2, marker="o", ms=5)[0]
            for colour, curve in zip(itertools.cycle(COLOURS), curves.values(), strict=False)
        ]
        axis.set(ylim=(0, max(10.0, 10 * -(-top // 10))), xlabel="severity", ylabel="top-1 (%)")
        axis.set_xticks(severities, ["clean" if s == 0 else str(s) for s in severities])
        axis.grid(axis="x", visible=False)
        names = [printable(name) for name in curves]
        axis.legend(lines, names, loc="upper left", bbox_to_anchor=(1.01, 1.0))
        return chart(figure, "accuracy against severity")


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
        curves=curve_chart(curves) if curves else "",
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
        curves=curve_chart(curves) if curves else "",
        metrics=metrics,
        runs=facts,
    )
