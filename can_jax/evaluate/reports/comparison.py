"""The HTML page that compares several evaluations, by weights, metric and test data."""

import json
import re
from typing import Any, NamedTuple

from can_jax.evaluate.page import number, render
from can_jax.evaluate.reports.meanings import meanings_of
from can_jax.evaluate.reports.report import (
    curves_of,
    data_of,
    headlines,
    location_of,
    robustness_chart,
    shown_interval,
    tested_on,
    unit_of,
    weights_of,
)

Results = dict[str, Any]
Column = tuple[str, Any]  # a metric, and its test examples
# Metrics whose higher values are better, and metrics whose lower values are better. Other metrics
# have no best value.
MORE = re.compile(r"(.*/)?(top\d.*|\d+shot)|health/effective_rank")
LESS = re.compile(r"(.*/)?(ece|mce|nll|brier)|health/dead_dimensions")


class _Row(NamedTuple):
    """A row of the comparison table: evaluations of the same weights, and their values."""

    weights: str
    evaluations: list[str]
    cells: dict[Column, tuple[float, str]]

    def agrees(self, cells: dict[Column, tuple[float, str]]) -> bool:
        """Return whether the values of another evaluation are equal to those of this row in all
        shared columns."""
        return all(self.cells.get(key, cell) == cell for key, cell in cells.items())


def matrix(runs: dict[str, Results]) -> list[dict[str, Any]]:
    """Return the comparison table: a row for each set of weights, a column for each main metric.

    A metric has a separate column for each set of test examples. Evaluations of the same weights
    have separate rows if their values in a column differ, for example because they used different
    features. A cell is a dict in which ``text`` is the content, and ``best`` is True for the best
    value of the column.

    Args:
        runs: The content of each `results.json`, by the name of its evaluation.
    """
    titles: dict[Column, str] = {}
    rows: list[_Row] = []
    for name, results in runs.items():
        cells: dict[Column, tuple[float, str]] = {}
        for metric, value in headlines(results["metrics"]).items():
            key = metric, tested_on(results, metric) or location_of(results)
            titles[key] = f"{metric}{unit_of(metric)}, {location_of(results)}"
            text, interval = number(value), shown_interval(results, metric)
            cells[key] = value, f"{text} ({interval})" if interval else text
        weights = weights_of(results)
        row = next((row for row in rows if row.weights == weights and row.agrees(cells)), None)
        if row is None:
            rows.append(_Row(weights, [name], cells))
        else:
            row.evaluations.append(name)
            row.cells.update(cells)
    repeated = [title for title in titles.values() if list(titles.values()).count(title) > 1]
    for key, title in titles.items():
        if title in repeated:  # The location is the same, but the examples differ.
            examples = sorted(key[1]) if isinstance(key[1], frozenset) else []
            titles[key] = f"{title} {' '.join(examples)}"
    best = {
        key: best_of(key[0], [row.cells[key][0] for row in rows if key in row.cells])
        for key in titles
    }
    table = []
    for row in rows:
        shown = {"weights": {"text": row.weights, "best": False}}
        shown["evaluations"] = {"text": ", ".join(row.evaluations), "best": False}
        for key, title in titles.items():
            cell = row.cells.get(key)
            is_best = cell is not None and cell[0] == best[key]
            shown[title] = {"text": cell[1] if cell else "", "best": is_best}
        table.append(shown)
    return table


def best_of(metric: str, values: list[float]) -> float | None:
    """Return the best value of a metric.

    Return None if there is only one value, or if neither high nor low values of the metric are
    better.
    """
    if len(values) < 2:
        return None
    if MORE.fullmatch(metric):
        return max(values)
    return min(values) if LESS.fullmatch(metric) else None


def comparison(runs: dict[str, Results]) -> str:
    """Return the HTML page that compares evaluations.

    Args:
        runs: The content of each `results.json`, by the name of its evaluation.
    """
    facts = [
        {
            "run": name, "protocol": r["protocol"]["protocol"], "step": r["checkpoint"]["step"],
            "weights": r["checkpoint"]["sha256"][:12], "checkpoint": r["checkpoint"]["path"],
            "features": r["protocol"]["features"], "data": data_of(r),
            "chosen": json.dumps(r["chosen"]),
        }
        for name, r in runs.items()
    ]  # fmt: skip
    names = dict.fromkeys(name for r in runs.values() for name in r["metrics"])
    metrics = [
        {"metric": name + unit_of(name)} | {run: r["metrics"].get(name) for run, r in runs.items()}
        for name in names
    ]
    warnings = [
        {"run": name, "warning": text} for name, r in runs.items() for text in r.get("warnings", ())
    ]
    curves = {k: v for name, r in runs.items() for k, v in curves_of(r, name).items()}
    return render(
        "comparison.html",
        names=list(runs),
        warnings=warnings,
        tests=len({tested_on(results, "") for results in runs.values()}),
        curves=robustness_chart(curves),
        matrix=matrix(runs),
        meanings=meanings_of([name for r in runs.values() for name in headlines(r["metrics"])]),
        metrics=metrics,
        runs=facts,
    )
