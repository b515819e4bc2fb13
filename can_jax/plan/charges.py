"""The estimated time of a step, instruction by instruction."""

import collections
import dataclasses

from can_jax.plan.parts import PARTS


@dataclasses.dataclass(frozen=True)
class Charge:
    """The time of one instruction in a step.

    Attributes:
        name, opcode: The instruction.
        part: The part of the step, one of `can_jax.plan.parts.PARTS`.
        kind: ``products``, ``copies``, ``collectives``, ``custom`` or ``elementwise``.
        seconds: The time of one execution.
        times: The number of executions in a step.
        basis: The origin of the time: ``compiler``, ``memory`` (its bytes or FLOPs at the device's
            peak) or ``link``.
        line: The line of source that it comes from, or None.
        launched: Whether it is launched as a kernel; scalars and the rest of a transfer are not.
        note: A fact that is missing in the text of the program, or None.
        moved: The bytes that one execution reads and writes.
        flops: The FLOPs of its matrix products.
    """

    name: str
    opcode: str
    part: str
    kind: str
    seconds: float
    times: int
    basis: str
    line: str | None
    launched: bool = True
    note: str | None = None
    moved: int = 0
    flops: float = 0.0

    @property
    def total(self) -> float:
        """The seconds of all executions in a step."""
        return self.seconds * self.times


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimate of a step: the time of each instruction."""

    charges: tuple[Charge, ...]

    @property
    def seconds(self) -> float:
        """The time of a step."""
        return sum(charge.total for charge in self.charges)

    @property
    def computing(self) -> float:
        """The time of a step without collectives."""
        return sum(charge.total for charge in self.charges if charge.kind != "collectives")

    @property
    def kernels(self) -> int:
        """The number of instructions launched in a step, loops multiplied out."""
        return sum(charge.times for charge in self.charges if charge.launched)

    @property
    def traffic(self) -> int:
        """The bytes that a step reads from memory and writes to it, without collectives."""
        return self._traffic("products") + self.traffic_outside_products

    @property
    def traffic_outside_products(self) -> int:
        """The bytes that a step moves in instructions that are no matrix products."""
        return self._traffic("copies", "custom", "elementwise")

    def _traffic(self, *kinds: str) -> int:
        return sum(charge.moved * charge.times for charge in self.charges if charge.kind in kinds)

    def parts(self) -> dict[str, float]:
        """Return the seconds of each part of the step that takes time."""
        by_part = self._sums("part")
        return {part: by_part[part] for part in PARTS if by_part[part]}

    def kinds(self) -> dict[str, float]:
        """Return the seconds by the kind of work; see `Charge.kind`."""
        return dict(sorted(self._sums("kind").items(), key=lambda item: -item[1]))

    def bases(self) -> dict[str, float]:
        """Return the seconds by their origin; see `Charge.basis`."""
        return dict(self._sums("basis"))

    def top(self, number: int) -> list[Charge]:
        """Return the most expensive instructions."""
        return sorted(self.charges, key=lambda charge: -charge.total)[:number]

    def unknown(self) -> list[Charge]:
        """Return custom calls without an estimate and instructions with a note, longest first."""
        found = (
            charge
            for charge in self.charges
            if charge.note or (charge.opcode == "custom-call" and charge.basis != "compiler")
        )
        return sorted(found, key=lambda charge: -charge.total)

    def _sums(self, key: str) -> dict[str, float]:
        sums: dict[str, float] = collections.defaultdict(float)
        for charge in self.charges:
            sums[getattr(charge, key)] += charge.total
        return sums
