"""A parser of compiled HLO text that counts the collectives of a program, loops included."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> (.*) \{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\(")
_ARRAY = re.compile(r"([a-z]+[0-9]*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
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
    """A collective operation, which moves arrays between devices.

    Attributes:
        kind: The operation, one of `KINDS`.
        axes: The mesh axes that it crosses, such as ``data`` or ``data+fsdp``.
        devices: The number of devices in each group of participants.
        arrays: The type and shape of its results on one device, such as ``bf16[1024,4096]``.
        bytes: The size of the results in bytes for one execution.
        times: The number of executions in one step.
    """

    kind: str
    axes: str
    devices: int
    arrays: tuple[str, ...]
    bytes: int
    times: int

    @property
    def moved(self) -> float:
        """The bytes that one device sends for one execution, by the usual ring algorithm."""
        others = (self.devices - 1) / self.devices
        if self.kind == "all-reduce":
            return 2 * others * self.bytes
        if self.kind == "reduce-scatter":
            return float((self.devices - 1) * self.bytes)
        return float(self.bytes) if self.kind == "collective-permute" else others * self.bytes


@dataclasses.dataclass
class _Computation:
    lines: list[str]
    entry: bool
    result: str


def collectives(text: str, mesh: Mesh) -> list[Collective]:
    """Return the collectives of a compiled program.

    Args:
        text: The text of the optimized program, from ``compiled.as_text()``.
        mesh: The mesh over whose devices, in this order, the program is partitioned.
    """
    computations = _split(text)
    times = _times(computations)
    by_channel: dict[str, Collective] = {}
    for name, computation in computations.items():
        for line in computation.lines:
            operation = _OPERATION.match(line)
            if operation is None or not times[name]:
                continue
            kind = operation[3].removesuffix("-start")
            if kind not in KINDS:
                continue
            arrays = _results(operation[2], kind, started=kind != operation[3])
            if name.startswith("all-reduce-scatter"):  # The TPU compiler's form.
                kind, arrays = "reduce-scatter", _results(computation.result, kind, started=False)
            group = _group(line, mesh)
            if len(group) < 2:
                continue
            # The compiler may split one collective over several operations. They share
            # a channel and are counted once.
            channel = re.search(r"channel_id=(\d+)", line)
            key = channel[1] if channel else f"{name}/{operation[1]}"
            repeated = max(times[name], by_channel[key].times if key in by_channel else 0)
            axes = _axes(group, mesh)
            size = sum(map(bytes_of, arrays))
            by_channel[key] = Collective(kind, axes, len(group), arrays, size, repeated)
    return list(by_channel.values())


def _split(text: str) -> dict[str, _Computation]:
    """Split the text of a program into its computations, by name."""
    computations: dict[str, _Computation] = {}
    lines: list[str] | None = None
    for raw in text.splitlines():
        if header := _COMPUTATION.match(raw):
            lines = []
            computations[header[2]] = _Computation(lines, bool(header[1]), header[3])
        elif raw.startswith("}"):
            lines = None
        elif lines is not None:
            lines.append(_LAYOUT.sub("", re.sub(r"/\*.*?\*/", "", raw)))
    return computations


def _times(computations: dict[str, _Computation]) -> dict[str, int]:
    """Return the number of executions of each computation in one run of the program."""
    times: dict[str, int] = collections.Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in computations[name].lines:
            loop = " while(" in line
            for called in _called(line):
                if called in computations:
                    visit(called, count * (_trips(line, computations) if loop else 1))

    for name, computation in computations.items():
        if computation.entry:
            visit(name, 1)
    return times


def _called(line: str) -> Iterator[str]:
    yield from _CALLED.findall(line)
    for branches in _BRANCHES.findall(line):
        yield from (name.strip().removeprefix("%") for name in branches.split(","))


def _trips(line: str, computations: dict[str, _Computation]) -> int:
    """Return the trip count of a loop: the compiler's, or the largest constant of its condition."""
    if match := re.search(r'known_trip_count"?:\{"n":"(\d+)"', line):
        return int(match[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    inside = computations[condition[1]].lines if condition else []
    bounds = [int(bound) for text in inside for bound in re.findall(r" constant\((\d+)\)", text)]
    return max(bounds, default=1)


def _results(kind_of: str, kind: str, *, started: bool) -> tuple[str, ...]:
    """Return the result arrays of an operation.

    An asynchronous start operation also returns its operands, which come first and are left out.
    """
    types = _ARRAY.findall(_LAYOUT.sub("", kind_of))
    arrays = tuple(f"{name}[{shape}]" for name, shape in types)
    if started and kind == "collective-permute":
        return arrays[1:2]
    if started and kind in ("all-gather", "reduce-scatter", "all-to-all"):
        return arrays[len(arrays) // 2 :]
    return arrays


def bytes_of(array: str) -> int:
    """Return the bytes of an array such as ``bf16[1024,4096]``."""
    name, shape = array.rstrip("]").split("[")
    digits = re.search(r"\d+", name)
    bits = BITS.get(name) or (int(digits[0]) if digits else 8)
    return math.prod(int(size) for size in shape.split(",") if size) * bits // 8


def _group(line: str, mesh: Mesh) -> Int[np.ndarray, " devices"]:
    """Return the indices of the devices in the first group of participants."""
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
    """Return the devices in the order given by a grid of them and its transposition."""
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
