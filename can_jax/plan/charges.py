"""The estimated time of a train step, as the sum of the times of its HLO instructions."""

import collections
import dataclasses

from can_jax.plan.parts import PARTS


@dataclasses.dataclass(frozen=True)
class Charge:
    """The estimated time of one HLO instruction in a train step.

    Attributes:
        name, opcode: The name and the HLO opcode of the instruction.
        part: The part of the step, one of `can_jax.plan.parts.PARTS`.
        kind: ``products`` (matrix products), ``copies``, ``collectives``, ``custom`` or
            ``elementwise``.
        seconds: The time of one execution in seconds.
        times: The number of executions in a step.
        basis: The origin of ``seconds``: ``compiler`` (the compiler's cycles), ``memory`` (a
            roofline of bytes and FLOPs) or ``link`` (the bandwidth of a network).
        line: The Python source line from which the instruction was traced, or None if unknown.
        launched: Whether the instruction is launched as a kernel, unlike operations on scalars.
        note: The reason why the time is uncertain, such as an unknown trip count of a loop; None if
            no reason is known.
        moved: The bytes that one execution reads and writes; 0 unless a roofline gives the time.
        flops: The FLOPs of one execution's matrix products; 0 unless a roofline gives the time.
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
        """The total seconds of all executions in a step."""
        return self.seconds * self.times


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The time estimate of a train step: a `Charge` for each instruction."""

    charges: tuple[Charge, ...]

    @property
    def seconds(self) -> float:
        """The estimated seconds of a step."""
        return sum(charge.total for charge in self.charges)

    @property
    def computing(self) -> float:
        """The estimated seconds of a step without its collectives."""
        return sum(charge.total for charge in self.charges if charge.kind != "collectives")

    @property
    def kernels(self) -> int:
        """The number of kernel launches in a step, counted for each iteration of a loop."""
        return sum(charge.times for charge in self.charges if charge.launched)

    @property
    def traffic(self) -> int:
        """The bytes that a step reads and writes in the instructions whose time comes from a
        roofline."""
        return self._traffic("products") + self.traffic_outside_products

    @property
    def traffic_outside_products(self) -> int:
        """The part of `traffic` from instructions that are not matrix products."""
        return self._traffic("copies", "custom", "elementwise")

    def _traffic(self, *kinds: str) -> int:
        return sum(charge.moved * charge.times for charge in self.charges if charge.kind in kinds)

    def parts(self) -> dict[str, float]:
        """Return the seconds of each part of the step, without parts that take no time."""
        by_part = self._sums("part")
        return {part: by_part[part] for part in PARTS if by_part[part]}

    def kinds(self) -> dict[str, float]:
        """Return the seconds of each `Charge.kind`, the largest first."""
        return dict(sorted(self._sums("kind").items(), key=lambda item: -item[1]))

    def bases(self) -> dict[str, float]:
        """Return the seconds of each `Charge.basis`."""
        return dict(self._sums("basis"))

    def top(self, number: int) -> list[Charge]:
        """Return the ``number`` instructions with the largest total times in a step, slowest
        first."""
        return sorted(self.charges, key=lambda charge: -charge.total)[:number]

    def unknown(self) -> list[Charge]:
        """Return the instructions whose times are uncertain, the slowest first.

        Times are uncertain for instructions with a `Charge.note`, and for custom calls without a
        compiler estimate.
        """
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
