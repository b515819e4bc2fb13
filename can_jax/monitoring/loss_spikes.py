"""A detector of loss spikes and of consecutive non-finite updates."""

import math
from collections import deque
from typing import Any, Literal

from ml_collections import ConfigDict

from can_jax.monitoring.timing import STEPS_IN_FLIGHT

DECAY = 0.99  # of the running mean and variance, which thus average about a hundred losses
LEARN = 100  # the number of losses in the running statistics before spikes are detected

Verdict = Literal["broken", "spike"]


class LossSpikeDetector:
    """A detector of loss spikes and of consecutive non-finite updates.

    The detector reads the loss of a step only `STEPS_IN_FLIGHT` steps later, so that the host does
    not wait for the step.

    Args:
        config: The resolved configuration. The detector reads ``skipped_updates_limit`` and
            ``spike``.
        state: The state of the detector that a checkpoint stores; None for a new run.
    """

    def __init__(self, config: ConfigDict, state: dict[str, Any] | None = None):
        self._limit, self._spike = config.skipped_updates_limit, config.spike
        restored = state or {
            "pending": [],
            "skipped": 0.0,
            "row": 0,
            "course": [0.0, 0.0, 0],
            "up": 0,
        }
        self._pending: deque[tuple[Any, Any]] = deque(map(tuple, restored["pending"]))
        # Older checkpoints may hold None for the number of skipped updates.
        self._skipped, self._skipped_in_a_row = restored["skipped"] or 0.0, restored["row"]
        self._mean, self._variance, self._losses = restored["course"]
        self._high_in_a_row = restored["up"]

    @property
    def state(self) -> dict[str, Any]:
        """The state of the detector as JSON values. Reading the state blocks until all dispatched
        steps have finished."""
        return {
            "pending": [[float(loss), float(skipped)] for loss, skipped in self._pending],
            "skipped": self._skipped,
            "row": self._skipped_in_a_row,
            "course": [self._mean, self._variance, self._losses],
            "up": self._high_in_a_row,
        }

    def __call__(self, loss: Any, skipped: Any) -> Verdict | None:
        """Queue the loss of a step, and check the loss of an earlier step.

        Args:
            loss: The loss of the step, a scalar that may still be computed on the devices.
            skipped: The number of updates that the run has skipped so far because they were not
                finite.

        Returns:
            The verdict `broken` once ``skipped_updates_limit`` updates in a row were skipped. The
            verdict `spike` once ``spike.steps`` losses in a row exceeded the running mean by more
            than ``spike.deviations`` running standard deviations. Otherwise None.
        """
        self._pending.append((loss, skipped))
        if len(self._pending) <= STEPS_IN_FLIGHT:
            return None
        loss, skipped = map(float, self._pending.popleft())
        if self._limit and self._count_skipped(skipped) >= self._limit:
            return "broken"
        steps = self._spike.steps
        if steps and math.isfinite(loss) and self._count_high(loss) == steps:
            return "spike"
        return None

    def _count_skipped(self, skipped: float) -> int:
        """Return the number of consecutive skipped updates, given the total number of skipped
        updates."""
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped > self._skipped else 0
        self._skipped = skipped
        return self._skipped_in_a_row

    def _count_high(self, loss: float) -> int:
        """Return the number of consecutive losses that are far above the running mean.

        A loss is far above the mean if it exceeds the mean by more than ``spike.deviations``
        running standard deviations. If consecutive losses are far above the mean, the running
        statistics ignore the first ``spike.steps - 1`` of them.
        """
        away = loss - self._mean
        limit = self._spike.deviations * math.sqrt(self._variance)
        is_high = self._losses >= LEARN and limit and away > limit
        self._high_in_a_row = self._high_in_a_row + 1 if is_high else 0
        if not 0 < self._high_in_a_row < self._spike.steps:
            keep = min(DECAY, self._losses / (self._losses + 1))  # first a plain mean
            self._mean += (1 - keep) * away
            self._variance = keep * (self._variance + (1 - keep) * away**2)
            self._losses += 1
        return self._high_in_a_row
