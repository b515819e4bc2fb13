"""Which checkpoints of a run are kept."""

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass
class Retention:
    """Keeps the last checkpoint, the last few regular ones, and those of some steps.

    It is a preservation policy as Orbax has them.

    Attributes:
        last: How many regular ones; None for all.
        every: Those of steps that it divides are kept for ever; None for no such steps.
        temporary: Steps that were saved only for the time that had passed.
    """

    last: int | None
    every: int | None
    temporary: set[int] = dataclasses.field(default_factory=set)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return whether to keep each of the checkpoints, which are in the order of their steps."""
        steps = [info.step for info in checkpoints]
        regular = [step for step in steps if step not in self.temporary]
        kept = set(steps[-1:]) | set(regular if self.last is None else regular[-self.last :])
        return [bool(step in kept or (self.every and step % self.every == 0)) for step in steps]
