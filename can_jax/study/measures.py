"""The metrics in which a study compares its arms."""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from can_jax.evaluate.protocols.registry import PROTOCOLS
from can_jax.objectives import OBJECTIVES
from can_jax.utils.errors import UserError

Result = dict[str, Any]
# The metrics of `metrics.jsonl` that a result retains as curves.
CURVES = (
    "step", "epoch", "loss/total", *(f"loss/{name}" for name in OBJECTIVES), "embedding/std",
    "embedding/effective_rank", "contrastive/top1", "denoising/explained", "denoising/linear_bound",
    "grad_norm", "probe/knn", "probe/knn_pixels", "probe/effective_rank", "probe/uniformity",
    "probe/tolerance", "probe/dead_dimensions",
)  # fmt: skip
TAIL = 0.1  # The last part of a run over which a logged metric is averaged: one step is noisy.


@dataclasses.dataclass(frozen=True)
class Measure:
    """A metric of a study's results.

    Attributes:
        title: The title of the metric's column, which ends with ``(%)`` if the metric is a
            percentage.
        metric: The name of the metric.
        tail: None if the metric is measured by the evaluation. If it is logged during training, its
            value is the mean over this fraction of the steps, at the end of training. With 0, the
            value is the last logged one.
    """

    title: str
    metric: str
    tail: float | None = None

    def _of(self, result: Result) -> float | None:
        if self.tail is None:
            return result["metrics"].get(self.metric)
        points = [p for p in result["curves"] if p.get(self.metric) is not None]
        if not points:
            return None
        first = min(points[-1]["step"], (1 - self.tail) * result["steps"])
        return statistics.mean(p[self.metric] for p in points if p["step"] >= first)

    def values(self, results: list[Result]) -> list[float]:
        """Return the values of the metric in those results that have it."""
        return [value for value in map(self._of, results) if value is not None]

    def format(self, value: float, sign: str = "") -> str:
        """Format a value with one decimal if the metric is a percentage, else with three.

        Args:
            value: The value to format.
            sign: The sign option of a format specification, such as ``+``.
        """
        digits = 1 if self.title.endswith("(%)") else 3
        return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # Adding 0.0 avoids "-0.0".

    def spread(self, results: list[Result]) -> str:
        """Format the mean of the metric over the results of an arm; append the standard deviation
        if several results have the metric. Return "" if none has it."""
        values = self.values(results)
        if not values:
            return ""
        mean = self.format(statistics.mean(values))
        return mean if len(values) < 2 else f"{mean} ± {self.format(statistics.stdev(values))}"

    def gain(self, results: list[Result], reference: list[Result]) -> str:
        """Format the difference between the means of two arms, or return "" if one lacks the
        metric."""
        values, base = self.values(results), self.values(reference)
        if not values or not base:
            return ""
        return self.format(statistics.mean(values) - statistics.mean(base), sign="+")


KNN = Measure("kNN (%)", "probe/knn", tail=0.0)


def measures_of(
    protocol: str, logged: Mapping[str, str], headline: str | None
) -> tuple[Measure, ...]:
    """Return the metrics in which a study compares its arms, the most important one first.

    They are the metrics of the evaluation protocol, the accuracy of the kNN probe, and ``logged``.

    Args:
        protocol: The name of the evaluation protocol.
        logged: Further metrics that are logged during training, as a dict from column title to a
            name in `CURVES`.
        headline: The title of the most important metric; None for the first one of the protocol.

    Raises:
        UserError: The protocol defines no metrics to compare, a metric in ``logged`` is not in
            `CURVES`, or no metric has the title ``headline``.
    """
    if not (compared := PROTOCOLS.get(protocol).compared):
        able = ", ".join(name for name, entry in PROTOCOLS.items() if entry.compared)
        raise UserError(
            f"config.evaluation.protocol={protocol!r} does not define the metrics that a study "
            f"compares: use {able}, or set 'compared' in the EvalProtocol of {protocol!r}"
        )
    for metric in logged.values():
        if metric not in CURVES:
            raise UserError(
                f"config.logged: results do not store {metric!r}; choose from {', '.join(CURVES)}"
            )
    measures = [Measure(title, metric) for title, metric in compared.items()]
    measures += [KNN, *(Measure(title, metric, TAIL) for title, metric in logged.items())]
    titles = [measure.title for measure in measures]
    if headline is None:
        return tuple(measures)
    if headline not in titles:
        raise UserError(f"config.headline={headline!r}: choose from {', '.join(titles)}")
    return tuple(sorted(measures, key=lambda measure: measure.title != headline))
