"""Trackers: the receivers of a run's metrics, hyperparameters and figures.

A user's module registers a tracker in `TRACKERS`. Every run of its process then has it, whether of
pretraining or of fine-tuning, beside the built-in ones of `can_jax.monitoring.metrics`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from can_jax.utils.registry import Registry


class Tracker:
    """A receiver of a run's metrics and figures; the methods of this base class do nothing.

    Only the main process has trackers. An error of a tracker is logged once and does not end the
    run.
    """

    def start(self, step: int) -> None:
        """Begin to track after a step: 0 for a new run, else the step from which the run resumes.

        It is called again after a rollback. Metrics of later steps will be logged once more.
        """

    def hyperparameters(self, config: dict[str, Any]) -> None:
        """Track the configuration of the run, a nested dict."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Track the metrics of a step; several calls can be of one step."""

    def figure(self, step: int, name: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Track a figure of a step."""

    def finish(self) -> None:
        """Write pending data. It is called at the end of the run, even if the run failed."""


TrackerFactory = Callable[[epath.Path], Tracker]
TRACKERS: Registry[TrackerFactory] = Registry("tracker")
"""Functions or classes that return a tracker, given the run directory."""
