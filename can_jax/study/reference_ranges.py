"""Bands around the curves of runs that went well, and what of another run is outside of them."""

import statistics
from collections.abc import Sequence
from typing import Any

METRICS = (
    "loss/contrastive", "loss/reconstruction", "loss/denoising", "embedding/effective_rank",
    "contrastive/top1", "probe/knn",
)  # fmt: skip
SLACK = 2.0  # average spreads of the runs, in proportion, that a band is wider on either side
LEAST = 0.05  # of its middle, that a band is wider at least

Bands = dict[str, dict[str, Sequence[float]]]  # of a metric: (low, high) by step


def bands_of(runs: list[list[dict[str, Any]]]) -> Bands:
    """Bands around what several runs logged at the steps they have in common."""
    bands: Bands = {}
    for metric in METRICS:
        values = [{line["step"]: line[metric] for line in run if metric in line} for run in runs]
        ranges: dict[int, tuple[float, float]] = {}
        for step in sorted(set.intersection(*(set(of_run) for of_run in values))):
            found = [of_run[step] for of_run in values]
            ranges[step] = (min(found), max(found))
        # A few runs may lie close together at one step by chance: the spread is that of all steps.
        wide = [(high - low) / max(abs(low + high) / 2, 1e-12) for low, high in ranges.values()]
        if not wide:
            continue
        share = max(SLACK * statistics.mean(wide), LEAST)
        place = bands[metric] = {}
        for step, (low, high) in ranges.items():
            margin = max(share * abs(low + high) / 2, high - low)
            place[str(step)] = (float(f"{low - margin:.5g}"), float(f"{high + margin:.5g}"))
    return bands


def outside(bands: Bands, run: list[dict[str, Any]]) -> list[str]:
    """What a run logged outside of the bands, in words; steps that have none are passed over."""
    found = []
    for line in run:
        for metric, band in bands.items():
            low, high = band.get(str(line["step"]), (-float("inf"), float("inf")))
            if metric in line and not low <= line[metric] <= high:
                place = f"{metric} at step {line['step']}"
                found.append(f"{place} is {line[metric]:.4g}, not within {low:.4g} and {high:.4g}")
    return found


def compared(bands: Bands, run: list[dict[str, Any]]) -> int:
    """How many values of a run there are bands for."""
    return sum(
        metric in line and str(line["step"]) in band
        for line in run
        for metric, band in bands.items()
    )
