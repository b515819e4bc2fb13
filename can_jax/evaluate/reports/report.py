"""The HTML page of one evaluation, `report.html`, and the comparison of several evaluations."""

import json
import re
from typing import Any

from can_jax.evaluate.page import COLOURS, Html, fill, join, number, page, section, table

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


def curve_svg(runs: dict[str, dict[int, float]]) -> Html:
    """Draw accuracy against severity, one line for each curve."""
    top = max(value for curve in runs.values() for value in curve.values())
    scale = max(10.0, 10 * -(-top // 10))
    parts = []
    for i in range(6):
        y = 260 - 220 * i / 5
        parts.append(fill('<line x1="50" x2="610" y1="{y}" y2="{y}" stroke="#eef0f2"/>', y=y))
        mark = '<text x="42" y="{y}" text-anchor="end">{value}</text>'
        parts.append(fill(mark, y=y + 4, value=f"{scale * i / 5:.0f}"))
    for severity in sorted({s for curve in runs.values() for s in curve}):
        x, name = 60 + 108 * severity, "clean" if severity == 0 else severity
        parts.append(
            fill('<text x="{x}" y="282" text-anchor="middle">{name}</text>', x=x, name=name)
        )
    for row, (name, curve) in enumerate(runs.items()):
        colour = COLOURS[row % len(COLOURS)]
        points = [(60 + 108 * s, 260 - 220 * v / scale) for s, v in curve.items()]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(
            fill(
                '<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>',
                line=line, colour=colour,
            )
        )  # fmt: skip
        dot = '<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>'
        parts += [fill(dot, x=f"{x:.1f}", y=f"{y:.1f}", colour=colour) for x, y in points]
        parts.append(
            fill(
                '<rect x="630" y="{top}" width="12" height="12" rx="2" fill="{colour}"/>'
                '<text x="648" y="{base}">{name}</text>',
                top=30 + 22 * row, base=41 + 22 * row, colour=colour, name=name,
            )
        )  # fmt: skip
    return fill(
        '<svg viewBox="0 0 820 300" role="img" aria-label="accuracy against severity">'
        "{parts}</svg><p>Mean top-1 (%) of all corruptions, by severity.</p>",
        parts=join(parts),
    )


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


def report_of(results: dict[str, Any], pictures: dict[str, Html]) -> Html:
    """Return the HTML page of one evaluation.

    Args:
        results: The content of `results.json`.
        pictures: The HTML elements of pictures, by title.
    """
    metrics = results["metrics"]
    card = "<div class=card><b>{value}</b><span>{name}</span></div>"
    cards = join(
        fill(card, value=number(value), name=name)
        for name, value in list(headlines(metrics).items())[:HEADLINES]
    )
    sections = [fill("<div class=cards>{cards}</div>", cards=cards)]
    if warnings := results.get("warnings"):
        lines = join(fill("<p>{text}</p>", text=warning) for warning in warnings)
        alert = '<section class=warning role="alert"><h2>Warnings</h2>{lines}</section>'
        sections.insert(0, fill(alert, lines=lines))
    if curves := curves_of(results, "this run"):
        sections.append(section("Robustness", curve_svg(curves)))
    sections += [section(title, element) for title, element in pictures.items()]
    sections += [section(title, table(rows)) for title, rows in results["tables"].items()]
    rows = [{"metric": name, "value": value} for name, value in metrics.items()]
    sections.append(section("All metrics", table(rows), folded=len(rows) > 2 * HEADLINES))
    counts = [{"examples": name, "count": count} for name, count in results["examples"].items()]
    sections.append(section("Examples", table(counts), folded=len(counts) > HEADLINES))
    facts = {key: results[key] for key in ("checkpoint", "data", "chosen", "protocol")}
    text = fill("<pre>{text}</pre>", text=json.dumps(facts, indent=2))
    sections.append(section("Checkpoint, data and settings", text, folded=True))
    checkpoint = results["checkpoint"]
    lead = (
        f"{checkpoint['path']}, step {checkpoint['step']}; weights {checkpoint['sha256'][:12]}; "
        f"data {data_of(results)}"
    )
    return page(f"Evaluation: {results['protocol']['protocol']}", lead, sections)


def comparison(runs: dict[str, dict[str, Any]]) -> Html:
    """Return the HTML page that compares several evaluations, given their results by name."""
    names = list(dict.fromkeys(name for r in runs.values() for name in r["metrics"]))
    rows = [
        {"metric": name} | {run: r["metrics"].get(name, "") for run, r in runs.items()}
        for name in names
    ]
    sections = [section("Metrics", table(rows))]
    if curves := {k: v for name, r in runs.items() for k, v in curves_of(r, name).items()}:
        sections.insert(0, section("Robustness", curve_svg(curves)))
    facts = [
        {
            "run": name, "protocol": r["protocol"]["protocol"], "step": r["checkpoint"]["step"],
            "weights": r["checkpoint"]["sha256"][:12], "checkpoint": r["checkpoint"]["path"],
            "features": r["protocol"]["features"], "data": data_of(r),
            "chosen": json.dumps(r["chosen"]),
        }
        for name, r in runs.items()
    ]  # fmt: skip
    sections.append(section("Runs", table(facts)))
    if len(set(map(tested_on, runs.values()))) > 1:
        sections.insert(0, section("Data", "The runs were tested on different examples."))
    warnings = [
        {"run": name, "warning": text} for name, r in runs.items() for text in r.get("warnings", ())
    ]
    if warnings:
        sections.insert(0, section("Warnings", table(warnings)))
    return page("Evaluations side by side", ", ".join(runs), sections)
