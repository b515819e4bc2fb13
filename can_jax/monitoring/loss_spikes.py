"""Says when training has left its course: updates that are not finite, or a loss that jumped up."""

import math
from collections import deque
from typing import Any, Literal

from ml_collections import ConfigDict

from can_jax.monitoring.timing import STEPS_IN_FLIGHT

DECAY = 0.99  # of the running mean and variance: they remember about a hundred steps
LEARN = 100  # steps before there is a course to leave

Verdict = Literal["broken", "spike"]


class Guard:
    """Looks at the loss of every step, a few steps late, so that nothing waits for it.

    Args:
        config: resolved; ``skipped_updates_limit`` and ``spike`` are read.
        state: that of the guard this one goes on from.
    """

    def __init__(self, config: ConfigDict, state: dict[str, Any] | None = None):
        self._limit, self._spike = config.skipped_updates_limit, config.spike
        known = state or {
            "pending": [],
            "skipped": 0.0,
            "row": 0,
            "course": [0.0, 0.0, 0],
            "up": 0,
        }
        self._pending: deque[tuple[Any, Any]] = deque(map(tuple, known["pending"]))
        self._skipped, self._row = known["skipped"] or 0.0, known["row"]  # older: None
        self._mean, self._variance, self._seen = known["course"]
        self._up = known["up"]

    @property
    def state(self) -> dict[str, Any]:
        """All it knows, in what JSON can hold. Waits for the steps in flight."""
        return {
            "pending": [[float(loss), float(skipped)] for loss, skipped in self._pending],
            "skipped": self._skipped,
            "row": self._row,
            "course": [self._mean, self._variance, self._seen],
            "up": self._up,
        }

    def __call__(self, loss: Any, skipped: Any) -> Verdict | None:
        """After a step.

        Args:
            loss: its loss.
            skipped: how many updates of the run were skipped since they were not finite.

        Returns:
            "broken" once ``skipped_updates_limit`` updates in a row were skipped, "spike" once the
            loss was above its course for ``spike.steps`` steps in a row.
        """
        self._pending.append((loss, skipped))
        if len(self._pending) <= STEPS_IN_FLIGHT:
            return None
        loss, skipped = map(float, self._pending.popleft())
        if self._limit and self._in_a_row(skipped) >= self._limit:
            return "broken"
        wanted = self._spike.steps
        if wanted and math.isfinite(loss) and self._above_course(loss) == wanted:
            return "spike"
        return None

    def _in_a_row(self, skipped: float) -> int:
        """Updates skipped in a row, given all so far."""
        self._row = self._row + 1 if skipped > self._skipped else 0
        self._skipped = skipped
        return self._row

    def _above_course(self, loss: float) -> int:
        """Steps in a row with a loss above its running mean by ``spike.deviations``. They do not
        change the course, unless they are so many that they are the new one."""
        away = loss - self._mean
        limit = self._spike.deviations * math.sqrt(self._variance)
        self._up = self._up + 1 if self._seen >= LEARN and limit and away > limit else 0
        if not 0 < self._up < self._spike.steps:
            keep = min(DECAY, self._seen / (self._seen + 1))  # at first the plain mean
            self._mean += (1 - keep) * away
            self._variance = keep * (self._variance + (1 - keep) * away**2)
            self._seen += 1
        return self._up
