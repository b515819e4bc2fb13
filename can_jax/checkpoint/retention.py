"""The retention policy of a run's checkpoints, and the removal of failed ones."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

REMOVAL_SECONDS = 10.0  # the limit of removing the remains of a failed write


@dataclasses.dataclass
class Retention:
    """An Orbax preservation policy that retains the last, some regular and periodic checkpoints.

    Attributes:
        last: The number of newest regular checkpoints to retain; None for all.
        every: Checkpoints of steps divisible by it are retained forever; None for none.
        temporary: The steps that were saved only because of the time since the last checkpoint.
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
    """Remove the remains of a save, retrying for seconds while its threads still write."""
    end = time.monotonic() + REMOVAL_SECONDS
    while left.exists() and time.monotonic() < end:
        try:
            left.rmtree()
        except OSError:
            time.sleep(0.1)
