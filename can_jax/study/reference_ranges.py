"""Reference ranges around the metrics of successful runs, and a check of other runs against these
ranges."""

import statistics
from collections.abc import Sequence
from typing import Any

from can_jax.objectives import OBJECTIVES
from can_jax.utils.errors import UserError

METRICS = (
    *(f"loss/{name}" for name in OBJECTIVES), "embedding/effective_rank", "contrastive/top1",
    "probe/knn",
)  # fmt: skip
SLACK = 2.0  # The margin on each side, in multiples of the average relative spread of the runs.
LEAST = 0.05  # The smallest margin, as a fraction of a range's center.

ReferenceRanges = dict[str, dict[str, Sequence[float]]]  # For each metric, (low, high) by step.


def ranges_of(runs: list[list[dict[str, Any]]]) -> ReferenceRanges:
    """Return a reference range for each metric and step that all given runs logged.

    Raises:
        UserError: A run logged a value that was not finite.
    """
    ranges: ReferenceRanges = {}
    for metric in METRICS:
        values = [{line["step"]: line[metric] for line in run if metric in line} for run in runs]
        extremes: dict[int, tuple[float, float]] = {}
        for step in sorted(set.intersection(*(set(of_run) for of_run in values))):
            at_step = [of_run[step] for of_run in values]
            if None in at_step:
                raise UserError(
                    f"{metric} at step {step} is not finite in run {at_step.index(None) + 1} of "
                    f"{len(runs)}: derive reference ranges from successful runs"
                )
            extremes[step] = (min(at_step), max(at_step))
        # A few runs can agree at one step by chance, so the spread is averaged over all steps.
        spread = [(high - low) / max(abs(low + high) / 2, 1e-12) for low, high in extremes.values()]
        if not spread:
            continue
        share = max(SLACK * statistics.mean(spread), LEAST)
        by_step = ranges[metric] = {}
        for step, (low, high) in extremes.items():
            margin = max(share * abs(low + high) / 2, high - low)
            by_step[str(step)] = (float(f"{low - margin:.5g}"), float(f"{high + margin:.5g}"))
    return ranges


def outside(ranges: ReferenceRanges, run: list[dict[str, Any]]) -> list[str]:
    """Return a message for each logged value outside its reference range.

    Values at steps without a range are ignored. A null in metrics.jsonl, which stands for a value
    that was not finite, is outside every range.
    """
    violations = []
    for line in run:
        for metric, by_step in ranges.items():
            if metric not in line or str(line["step"]) not in by_step:
                continue
            (low, high), value = by_step[str(line["step"])], line[metric]
            if value is None or not low <= value <= high:
                shown = "not finite" if value is None else f"{value:.4g}"
                violations.append(
                    f"{metric} at step {line['step']} is {shown}, outside the range "
                    f"[{low:.4g}, {high:.4g}]"
                )
    return violations


def compared(ranges: ReferenceRanges, run: list[dict[str, Any]]) -> int:
    """Return the number of logged values that have a reference range."""
    return sum(
        metric in line and str(line["step"]) in by_step
        for line in run
        for metric, by_step in ranges.items()
    )
