"""The retention policy of checkpoints, and the removal of incomplete checkpoints."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

REMOVAL_SECONDS = 10.0  # the time limit for removing the remains of a failed save


@dataclasses.dataclass
class Retention:
    """An Orbax preservation policy that selects the checkpoints to retain.

    The latest checkpoint is always retained, whether regular or temporary.

    Attributes:
        last: The number of latest regular checkpoints to retain; None for all.
        every: Checkpoints whose step is a multiple of this number are also retained; None for off.
        temporary: The steps of the temporary checkpoints. A temporary checkpoint whose step is not
            a multiple of ``every`` is deleted when a later checkpoint exists.
    """

    last: int | None
    every: int | None
    temporary: set[int] = dataclasses.field(default_factory=set)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return, for each checkpoint in order of step, whether to retain it."""
        steps = [info.step for info in checkpoints]
        regular = [step for step in steps if step not in self.temporary]
        kept = set(steps[-1:]) | set(regular if self.last is None else regular[-self.last :])
        return [bool(step in kept or (self.every and step % self.every == 0)) for step in steps]


def remove_remains(left: epath.Path) -> None:
    """Remove the folder of a failed save. Background threads may still write to the folder.

    The removal is retried for up to `REMOVAL_SECONDS`, and then given up without an error.
    """
    end = time.monotonic() + REMOVAL_SECONDS
    while left.exists() and time.monotonic() < end:
        try:
            left.rmtree()
        except OSError:
            time.sleep(0.1)
