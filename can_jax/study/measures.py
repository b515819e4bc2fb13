"""The metrics in which a study compares its arms."""

import dataclasses
import statistics
from typing import Any

from can_jax.evaluate.protocols.registry import PROTOCOLS
from can_jax.utils.errors import UserError

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A metric of a study's results.

    Attributes:
        title: The title of the metric's column, which ends with ``(%)`` if the metric is a
            percentage.
        metric: The name of the metric in the results of the evaluation. If None, the metric is the
            accuracy of the last kNN probe.
    """

    title: str
    metric: str | None

    def of(self, result: Result) -> float:
        """Return the value of the metric in a result."""
        if self.metric is not None:
            return result["metrics"][self.metric]
        return [point["probe/knn"] for point in result["curves"] if "probe/knn" in point][-1]

    def format(self, value: float, sign: str = "") -> str:
        """Format a value with one decimal if the metric is a percentage, else with three.

        Args:
            value: The value to format.
            sign: The sign option of a format specification, such as ``+``.
        """
        digits = 1 if self.title.endswith("(%)") else 3
        return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # Adding 0.0 avoids "-0.0".

    def mean(self, results: list[Result]) -> float:
        """Return the mean of the metric over the results of an arm."""
        return statistics.mean(map(self.of, results))

    def spread(self, results: list[Result]) -> str:
        """Format the mean of the metric over the results of an arm; append the standard deviation
        if there are several results."""
        mean = self.format(self.mean(results))
        if len(results) < 2:
            return mean
        return f"{mean} ± {self.format(statistics.stdev(map(self.of, results)))}"


KNN = Measure("kNN (%)", None)


def measures_of(protocol: str) -> tuple[Measure, ...]:
    """Return the metrics in which studies with an evaluation protocol compare their arms, the most
    important one first.

    Raises:
        UserError: The protocol defines no metrics to compare.
    """
    if not (compared := PROTOCOLS.get(protocol).compared):
        able = ", ".join(name for name, entry in PROTOCOLS.items() if entry.compared)
        raise UserError(
            f"config.evaluation.protocol={protocol!r} does not define the metrics that a study "
            f"compares: use {able}, or set 'compared' in the EvalProtocol of {protocol!r}"
        )
    return tuple(Measure(title, metric) for title, metric in compared.items())
