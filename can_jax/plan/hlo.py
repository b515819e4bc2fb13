"""The collective operations in a compiled program, counted once per iteration of a loop."""

import dataclasses
import math
import re
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from can_jax.plan.program import Computation, Instruction, Program, bits

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_ARRAY = re.compile(r"([a-z]+[0-9]*[a-z0-9]*)\[([\d,]*)\]")
_LAYOUT = re.compile(r"(?<=\])\{[^{}]*\}")
_ORDER = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"  # A grid of devices, and its transposition.
_NAMED_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((?:" + _ORDER + r"|([\d,]+))\))? \{([^}]*)\}"
)
_COUNTED = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=" + _ORDER)
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation in a compiled program.

    Attributes:
        kind: The type of collective, one of `KINDS`, such as ``all-reduce``.
        axes: The mesh axes along which devices communicate, such as ``data`` or ``data+fsdp``.
        devices: The number of devices in each group that communicates.
        arrays: The dtype and shape of each result on one device, such as ``bf16[1024,4096]``.
        bytes: The size in bytes of the results of one execution on one device.
        times: The number of executions in one train step.
        members: The devices of the first group; empty if unknown.
    """

    kind: str
    axes: str
    devices: int
    arrays: tuple[str, ...]
    bytes: int
    times: int
    members: tuple[Any, ...] = ()

    @property
    def moved(self) -> float:
        """The bytes that one device sends in one execution, with a ring algorithm."""
        others = (self.devices - 1) / self.devices
        if self.kind == "all-reduce":
            return 2 * others * self.bytes
        if self.kind == "reduce-scatter":
            return float((self.devices - 1) * self.bytes)
        return float(self.bytes) if self.kind == "collective-permute" else others * self.bytes


def collectives(program: Program | str, mesh: Mesh) -> list[Collective]:
    """Return the collectives of a compiled program.

    Args:
        program: The program, or its text from ``compiled.as_text()``.
        mesh: The mesh over which the program is partitioned. Partition ``i`` runs on device ``i``
            of the flattened mesh.
    """
    if isinstance(program, str):
        program = Program(program)
    times = program.times()
    found: dict[str, Collective] = {}
    for name, computation in program.computations.items():
        for instruction in computation.instructions:
            collective = collective_of(instruction, computation, mesh) if times[name] else None
            if collective is None:
                continue
            # The operations of a chain are one collective, and are counted once.
            key = chain_of(instruction) or f"{name}/{instruction.name}"
            repeated = max(times[name], found[key].times if key in found else 0)
            found[key] = dataclasses.replace(collective, times=repeated)
    return list(found.values())


def chain_of(instruction: Instruction) -> str | None:
    """Return the chain ID of a collective, or None without an ID.

    The TPU compiler may split a collective over several fusions. All operations of one split
    collective share a chain ID. A channel ID does not identify a collective: the collectives of
    several gradients can share one channel ID.
    """
    return instruction.attribute(r'chain_id="(\d+)"')


def collective_of(
    instruction: Instruction, computation: Computation, mesh: Mesh
) -> Collective | None:
    """Return the collective that an instruction performs or starts, with ``times`` set to 1.

    Args:
        instruction: The instruction.
        computation: The computation that contains the instruction.
        mesh: The mesh over which the program is partitioned, as for `collectives`.

    Returns:
        The collective, or None if the instruction does not communicate between devices.
    """
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    arrays = _results(instruction.result, kind, started=kind != instruction.opcode)
    if computation.name.startswith("all-reduce-scatter"):  # The TPU compiler's form.
        kind, arrays = "reduce-scatter", _results(computation.result, kind, started=False)
    group = _group(instruction.attributes, mesh)
    if len(group) < 2:
        return None
    size = sum(map(bytes_of, arrays))
    members = tuple(mesh.devices.reshape(-1)[group])
    return Collective(kind, _axes(group, mesh), len(group), arrays, size, 1, members)


def _results(result_type: str, kind: str, *, started: bool) -> tuple[str, ...]:
    """Parse the text of an HLO result type, and return the dtype and shape of each result.

    The result of an asynchronous start operation also contains its operands, which are omitted.
    """
    types = _ARRAY.findall(_LAYOUT.sub("", result_type))
    arrays = tuple(f"{name}[{shape}]" for name, shape in types)
    if started and kind == "collective-permute":
        return arrays[1:2]
    if started and kind in ("all-gather", "reduce-scatter", "all-to-all"):
        return arrays[len(arrays) // 2 :]
    return arrays


def bytes_of(array: str) -> int:
    """Return the size in bytes of an array such as ``bf16[1024,4096]``."""
    name, shape = array.rstrip("]").split("[")
    return math.prod(int(size) for size in shape.split(",") if size) * bits(name) // 8


def _group(line: str, mesh: Mesh) -> Int[np.ndarray, " devices"]:
    """Return the indices of the devices in the first group of an HLO collective."""
    everyone = np.arange(mesh.size)
    if named := _NAMED_MESH.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        used = re.findall(r"'(\w+)'", named[5])
        order = np.array(_numbers(named[4])) if named[4] else _ordered(everyone, named[2], named[3])
        grid = order.reshape([int(size) for size in sizes.values()])
        return grid[tuple(slice(None) if name in used else 0 for name in sizes)].reshape(-1)
    if counted := _COUNTED.search(line):
        groups = int(counted[1]), int(counted[2])
        return _ordered(everyone, counted[3], counted[4]).reshape(groups)[0]
    if listed := _LISTED.search(line):
        return np.array(_numbers(listed[1]))
    if pairs := _PAIRS.search(line):
        moves = re.findall(r"(\d+),(\d+)", pairs[1])
        moving = next(((a, b) for a, b in moves if a != b), ("0", "0"))
        return np.unique([int(device) for device in moving])
    return everyone


def _numbers(text: str) -> list[int]:
    return [int(item) for item in text.split(",")]


def _ordered(devices: np.ndarray, grid: str | None, transposed: str | None) -> np.ndarray:
    """Reshape the devices to ``grid`` if given, and permute their axes by ``transposed`` if
    given."""
    if grid:
        devices = devices.reshape(_numbers(grid))
    return devices.transpose(_numbers(transposed)) if transposed else devices


def _axes(group: Int[np.ndarray, " devices"], mesh: Mesh) -> str:
    """Return the mesh axes along which the devices of a group differ."""
    coordinates = np.unravel_index(group, tuple(mesh.shape.values()))
    differ = [
        name
        for name, coordinate in zip(mesh.shape, coordinates, strict=True)
        if len(np.unique(coordinate)) > 1
    ]
    return "+".join(differ)
