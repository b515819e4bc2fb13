"""The estimated time of a compiled train step, from the compiler's cycle estimates and a roofline.

The TPU compiler writes the expected cycles of an instruction into the text of the program
(``estimated_cycles``). This module sums the cycles along the schedule, and multiplies those of a
loop's body by the trip count. The time of an instruction without estimated cycles is the longer of
memory time and compute time at peak rates (a roofline). The time of a collective is the number of
sent bytes divided by the bandwidth of the network. If a transfer overlaps other instructions, only
the part of its time without overlap counts.
"""

import dataclasses
import math
import re

from jax.sharding import Mesh

from can_jax.plan.charges import Charge, Estimate
from can_jax.plan.clocks import Clock
from can_jax.plan.hlo import chain_of, collective_of
from can_jax.plan.parts import line_of, part_of, part_of_argument
from can_jax.plan.program import Computation, Instruction, Program
from can_jax.plan.roofline import (
    custom_targets,
    flops,
    inside,
    is_free,
    kind_of,
    moved_bytes,
    origin_of,
    target,
)
from can_jax.plan.topology import Topology

_CYCLES = re.compile(r'"estimated_cycles":\s*"(\d+)"')
_CASTS = ("convert", "copy", "copy-start", "copy-done", "bitcast", "reshape", "transpose")
# Custom calls in fused computations that begin and end a collective of the TPU compiler's fusions.
_BEGIN, _END = "AsyncCollectiveStart", "AsyncCollectiveDone"


def estimate_step(program: Program, mesh: Mesh, topology: Topology, clock: Clock) -> Estimate:
    """Return the estimated time of each instruction of a program.

    Args:
        program: The compiled program. A program for TPUs contains the compiler's cycle estimates.
        mesh: The device mesh over which the program is partitioned. Partition ``i`` runs on device
            ``i`` of the flattened mesh.
        topology: The devices and networks for which the program is compiled.
        clock: The clock rate and memory bandwidth of a device.
    """
    walk = _Walk(program, mesh, topology, clock)
    return Estimate(tuple(walk.charges(program.entry.name, 1, None)))


@dataclasses.dataclass
class _Transfer:
    """An asynchronous transfer, which can overlap other instructions.

    Attributes:
        instruction: The instruction that starts the transfer.
        part: The part of the step to which the transfer belongs.
        kind: The kind of transfer, ``collectives`` or ``copies``.
        needed: The duration of the transfer in seconds.
        finish: The seconds from the start of the computation to the end of the transfer.
        hidden: The seconds of the transfer that fusions have overlapped so far; None for a transfer
            that overlaps every later instruction.
    """

    instruction: Instruction
    part: str | None
    kind: str
    needed: float
    finish: float
    hidden: float | None


class _Walk:
    """A traversal of a program in the order of its schedule, which estimates each instruction."""

    def __init__(self, program: Program, mesh: Mesh, topology: Topology, clock: Clock):
        self.program, self._mesh, self._topology, self._clock = program, mesh, topology, clock

    def charges(self, name: str, times: int, context: str | None) -> list[Charge]:
        """Return a `Charge` for each instruction that takes time in a computation. The instructions
        of loops, of calls and of the slowest branch of a conditional are included.

        Args:
            name: The name of the computation.
            times: The number of executions of the computation in a step.
            context: The part of the step to which the calling instruction belongs; None for the
                entry computation or an unknown part.
        """
        schedule = _Schedule(self, times)
        computation = self.program.computations[name]
        for instruction in computation.instructions:
            if not is_free(instruction):
                schedule.run(computation, instruction, self._part(instruction, context))
        schedule.end()
        return schedule.charges

    def called(self, instruction: Instruction, times: int, part: str | None) -> list[Charge]:
        """Return a `Charge` for each instruction that a loop, a conditional or a call executes.

        A conditional is assumed to take its slowest branch.
        """
        trips = self.program.trips(instruction) if instruction.opcode == "while" else 1
        branches = [
            self.charges(name, times * (1 if trips is None else trips), part)
            for name in instruction.called
        ]
        if instruction.opcode == "conditional":
            return max(branches, key=lambda branch: sum(c.total for c in branch), default=[])
        result = [charge for branch in branches for charge in branch]
        if trips is None:
            note = "a loop of unknown length, counted once"
            result.append(
                self.charge(instruction, 0.0, times, part, "memory", launched=False, note=note)
            )
        return result

    def single(
        self, computation: Computation, instruction: Instruction, times: int, part: str | None
    ) -> Charge:
        """Return the `Charge` of an instruction, from the compiler's cycles or from a roofline."""
        kind = kind_of(self.program, instruction)
        if part is None and kind != "copies":
            part = self._origin(computation, instruction)
        cycles = _CYCLES.search(instruction.attributes)
        if cycles and int(cycles[1]) and self._clock.hertz:
            seconds = int(cycles[1]) / self._clock.hertz
            return self.charge(instruction, seconds, times, part, "compiler", kind)
        products = flops(self.program, computation, instruction)
        moved = moved_bytes(self.program, computation, instruction)
        seconds = max(
            moved / self._clock.memory_bandwidth,
            (products or 0.0) / self._topology.chip.peak_flops,
        )
        note = None
        if products is None:
            note = f"unknown FLOPs of {', '.join(custom_targets(self.program, instruction))}"
        scalar = all(math.prod(array.shape) == 1 for array in instruction.arrays)
        launched = instruction.opcode in ("fusion", "custom-call") or not scalar
        charge = self.charge(instruction, seconds, times, part, "memory", kind, launched, note)
        return dataclasses.replace(charge, moved=moved, flops=products or 0.0)

    def charge(
        self,
        instruction: Instruction,
        seconds: float,
        times: int,
        part: str | None,
        basis: str,
        kind: str = "elementwise",
        launched: bool = True,
        note: str | None = None,
    ) -> Charge:
        """Return the `Charge` of an instruction, given its time.

        Collectives are assigned to a part of their own, ``collectives``.
        """
        if kind == "collectives":
            part = kind
        elif part is None:
            part = "copies" if kind == "copies" else "other"
        line = line_of(self.program.stack(origin_of(self.program, instruction)))
        return Charge(
            instruction.name, instruction.opcode, part, kind, seconds, times, basis, line,
            launched, note,
        )  # fmt: skip

    def collectives(
        self, computation: Computation, instruction: Instruction
    ) -> list[tuple[str | None, float]]:
        """Return the chain ID, if any, and the seconds of each collective in an instruction."""
        found = [(computation, instruction)]
        if instruction.opcode == "fusion" or instruction.opcode.startswith("async-"):
            found = list(inside(self.program, instruction))
        result = []
        for where, one in found:
            if collective := collective_of(one, where, self._mesh):
                bandwidth = self._topology.bandwidth(collective.devices, collective.members)
                result.append((chain_of(one), collective.moved / bandwidth))
        return result

    def copy_seconds(self, instruction: Instruction) -> float:
        """Return the seconds of an asynchronous copy.

        The result of a ``copy-start`` instruction holds the destination, the source and flags. The
        number of copied bytes is the size of the destination or of the source, whichever is
        smaller.
        """
        large = [array.bytes for array in instruction.arrays if array.shape]
        return min(large[:2], default=0) / self._clock.memory_bandwidth

    def _origin(self, computation: Computation, instruction: Instruction) -> str | None:
        """Return the part of the step for which an instruction casts or copies a step argument.

        Step arguments are, for example, the parameters and the batch. The result is None if the
        instruction does not cast or copy a step argument.
        """
        found: Instruction | None = instruction
        while found is not None and found.opcode in _CASTS and found.operands:
            found = computation.by_name.get(found.operands[0])
        if found is None or found.opcode != "parameter":
            return None
        return part_of_argument(found.attribute(r'op_name="([^"]*)"') or "")

    def _part(self, instruction: Instruction, context: str | None) -> str | None:
        origin = origin_of(self.program, instruction)
        operation = origin.attribute(r'op_name="([^"]*)"') or ""
        return part_of(self.program.stack(origin), operation) or context


def _counted(instruction: Instruction) -> bool:
    """Return whether an instruction is a fusion with a cycle estimate from the compiler."""
    return instruction.opcode == "fusion" and bool(_CYCLES.search(instruction.attributes))


class _Schedule:
    """The schedule of one computation: its `Charge` list, elapsed time and open transfers.

    Args:
        walk: The traversal of the program that contains the computation.
        times: The number of executions of the computation in a step.
    """

    def __init__(self, walk: _Walk, times: int):
        self.charges: list[Charge] = []
        self._walk, self._times = walk, times
        self._now = 0.0  # The seconds of one execution so far.
        self._free = {"collectives": 0.0, "copies": 0.0}  # When each engine ends its transfers.
        self._pending: dict[str, _Transfer] = {}
        self._sent: set[str] = set()  # Chains whose collective is charged.

    def run(self, computation: Computation, instruction: Instruction, part: str | None) -> None:
        """Add the `Charge` list of the next instruction, and update the elapsed time and open
        transfers."""
        opcode = instruction.opcode
        if opcode in ("while", "conditional", "call"):
            self._add(*self._walk.called(instruction, self._times, part))
            return
        moves = self._walk.collectives(computation, instruction)
        if opcode == "fusion":
            self._fusion(computation, instruction, part, moves)
        elif opcode.endswith("-start"):
            self._start(instruction.name, instruction, part, moves, stepwise=False)
        elif opcode.endswith("-update"):
            if transfer := self._pending.pop(instruction.operands[0], None):
                self._pending[instruction.name] = transfer
        elif opcode.endswith("-done"):
            self._finish(self._pending.pop(instruction.operands[0], None))
        elif moves:
            self._send(instruction, part, moves)
        else:
            self._add(self._walk.single(computation, instruction, self._times, part))

    def end(self) -> None:
        """Count the full time of transfers that this computation starts but does not finish."""
        for transfer in self._pending.values():
            self._finish(dataclasses.replace(transfer, hidden=0.0))

    def _fusion(
        self,
        computation: Computation,
        instruction: Instruction,
        part: str | None,
        moves: list[tuple[str | None, float]],
    ) -> None:
        """Add the `Charge` list of a fusion, which may also start, advance, finish or perform a
        collective."""
        seconds = 0.0
        if not moves or _counted(instruction):
            self._add(self._walk.single(computation, instruction, self._times, part))
            seconds = self.charges[-1].seconds
        if not moves:
            return
        targets = {target(inner) for _, inner in inside(self._walk.program, instruction)}
        chain = moves[0][0] or instruction.name
        if _BEGIN in targets:
            self._start(chain, instruction, part, moves, stepwise=True)
        elif _END in targets:
            if chain in self._pending:
                self._finish(self._pending.pop(chain))
                self._sent.add(chain)
            self._send(instruction, part, moves)  # Unless it was begun here.
        elif chain in self._pending:
            transfer = self._pending[chain]
            transfer.hidden = (transfer.hidden or 0.0) + seconds
        else:
            self._send(instruction, part, moves)

    def _start(
        self,
        key: str,
        instruction: Instruction,
        part: str | None,
        moves: list[tuple[str | None, float]],
        *,
        stepwise: bool,
    ) -> None:
        """Queue a transfer behind all unfinished transfers of its kind (collectives or copies).

        Args:
            key: The instruction name or chain ID by which a later instruction ends the transfer.
            instruction: The instruction that starts the transfer.
            part: The part of the step to which the transfer belongs.
            moves: The chain ID and the seconds of each collective; empty for a copy.
            stepwise: Whether the transfer overlaps only the fusions that advance it, not every
                later instruction.
        """
        kind = "collectives" if moves else "copies"
        needed = sum(seconds for _, seconds in moves)
        needed = needed if moves else self._walk.copy_seconds(instruction)
        self._free[kind] = max(self._now, self._free[kind]) + needed
        hidden = 0.0 if stepwise else None
        self._pending[key] = _Transfer(instruction, part, kind, needed, self._free[kind], hidden)

    def _finish(self, transfer: _Transfer | None) -> None:
        """Count the part of a transfer's time that other instructions do not overlap."""
        if transfer is None:  # It was charged in the computation that starts it.
            return
        if transfer.hidden is None:
            rest = transfer.finish - self._now
        else:
            rest = transfer.needed - transfer.hidden
        basis = "link" if transfer.kind == "collectives" else "memory"
        self._add(
            self._walk.charge(
                transfer.instruction, max(0.0, rest), self._times, transfer.part, basis,
                transfer.kind, launched=not _counted(transfer.instruction),
            )
        )  # fmt: skip

    def _send(
        self, instruction: Instruction, part: str | None, moves: list[tuple[str | None, float]]
    ) -> None:
        """Count the full time of each collective, since no instruction overlaps it. Collectives
        that share a chain ID count once."""
        for chain, seconds in moves:
            if chain is None or chain not in self._sent:
                if chain is not None:
                    self._sent.add(chain)
                self._add(
                    self._walk.charge(
                        instruction,
                        seconds,
                        self._times,
                        part,
                        "link",
                        "collectives",
                        launched=not _counted(instruction),
                    )
                )

    def _add(self, *charges: Charge) -> None:
        self.charges.extend(charges)
        self._now += sum(charge.total for charge in charges) / self._times
