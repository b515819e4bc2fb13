"""The retention policy of a run's checkpoints, and the removal of failed ones."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

REMOVAL_SECONDS = 10.0  # the time limit for removing the remains of a failed save


@dataclasses.dataclass
class Retention:
    """An Orbax preservation policy, which decides the checkpoints to retain.

    The newest checkpoint is retained, whether regular or temporary.

    Attributes:
        last: The number of newest regular checkpoints to retain; None for all.
        every: Checkpoints of steps divisible by this number are retained; None for no such number.
        temporary: The steps of checkpoints that the next checkpoint replaces.
    """

    last: int | None
    every: int | None
    temporary: set[int] = dataclasses.field(default_factory=set)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return whether to retain each of the checkpoints, which are ordered by step."""
        steps = [info.step for info in checkpoints]
        regular = [step for step in steps if step not in self.temporary]
        kept = set(steps[-1:]) | set(regular if self.last is None else regular[-self.last :])
        return [bool(step in kept or (self.every and step % self.every == 0)) for step in steps]


def remove_remains(left: epath.Path) -> None:
    """Remove the remains of a failed save, whose threads may still write.

    Retry for up to `REMOVAL_SECONDS`. What then remains is left there without an error.
    """
    end = time.monotonic() + REMOVAL_SECONDS
    while left.exists() and time.monotonic() < end:
        try:
            left.rmtree()
        except OSError:
            time.sleep(0.1)
