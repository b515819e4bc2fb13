"""A parser of compiled HLO text: computations, instructions, and their source lines."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> (.*) \{$")
_OPERATION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\(")
_COMMENT = re.compile(r"/\*.*?\*/")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([\d,]*)\](?:\{([\d,]*)(?::([^{}]*))?\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{\s*"n":\s*"(\d+)"')


class Array(NamedTuple):
    """The type of an array in HLO text.

    Attributes:
        type: The element type, such as ``bf16``.
        shape: The number of elements along each axis.
        padded: The number of stored elements, including the padding of tiles in TPU layouts.
    """

    type: str
    shape: tuple[int, ...]
    padded: int

    @property
    def bytes(self) -> int:
        """The number of stored bytes of the array, including padding."""
        return self.padded * bits(self.type) // 8


class Frame(NamedTuple):
    """A frame of the Python stack from which an instruction was traced."""

    file: str
    function: str
    line: int


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An HLO instruction.

    Attributes:
        name, opcode: The name of the instruction, and its operation, such as ``fusion``.
        result: The text of the result type, such as ``f32[3,8]{1,0}``.
        operands: The names of the instructions whose results are the operands.
        attributes: The text after the closing parenthesis of the operands.
        arguments: The text between the parentheses: the operands, or the value of a constant.
        root: Whether the result of the instruction is the result of its computation.
    """

    name: str
    opcode: str
    result: str
    operands: tuple[str, ...]
    attributes: str
    arguments: str
    root: bool

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays in the result; several if the result is a tuple."""
        return arrays(self.result)

    @functools.cached_property
    def bytes(self) -> int:
        """The total number of stored bytes of the result."""
        return sum(array.bytes for array in self.arrays)

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """The names of the computations that the instruction calls, such as a loop's body."""
        return tuple(_called(self.attributes))

    def attribute(self, pattern: str) -> str | None:
        """Search the attributes for a regular expression; return the first group of the match, or
        None without a match."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else None


@dataclasses.dataclass
class Computation:
    """An HLO computation.

    Attributes:
        name: The name of the computation.
        entry: Whether this is the entry computation of the program.
        result: The text of the result type.
        instructions: The instructions in the order of execution.
    """

    name: str
    entry: bool
    result: str
    instructions: list[Instruction]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """The instructions of the computation by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        """The instruction whose result is the result of the computation."""
        return next(i for i in reversed(self.instructions) if i.root)


class Program:
    """A compiled program, parsed from its HLO text.

    Args:
        text: The text of the optimized program, from ``compiled.as_text()``.
    """

    def __init__(self, text: str):
        self.computations = {c.name: c for c in _computations(text)}
        self._stacks: dict[int, tuple[Frame, ...]] = {}
        self._tables = {
            name: _table(text, name)
            for name in ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
        }

    @property
    def entry(self) -> Computation:
        """The entry computation, in which the program starts."""
        return next(c for c in self.computations.values() if c.entry)

    def executed(self, instruction: Instruction) -> int:
        """Return how often an instruction executes each computation that it calls.

        The result is the trip count of a loop if it is known, and 1 in all other cases.
        """
        if instruction.opcode != "while":
            return 1
        return self.trips(instruction) or 1

    def trips(self, loop: Instruction) -> int | None:
        """Return the trip count of a loop, or None if it is unknown.

        If the compiler does not state the trip count, the largest constant in the loop's condition
        is assumed.
        """
        if match := _TRIPS.search(loop.attributes):
            return int(match[1]) or None
        condition = loop.attribute(r"condition=%?([\w.\-]+)")
        return max(self._constants(condition), default=0) or None if condition else None

    def _constants(self, name: str) -> Iterator[int]:
        for instruction in self.computations[name].instructions:
            if instruction.opcode == "constant" and instruction.arguments.isdecimal():
                yield int(instruction.arguments)
            for called in instruction.called:
                if called in self.computations:
                    yield from self._constants(called)

    def times(self) -> dict[str, int]:
        """Return the number of executions of each computation in one run of the program."""
        times = dict.fromkeys(self.computations, 0)

        def visit(name: str, count: int) -> None:
            times[name] += count
            for instruction in self.computations[name].instructions:
                for called in instruction.called:
                    if called in self.computations:
                        visit(called, count * self.executed(instruction))

        visit(self.entry.name, 1)
        return times

    def stack(self, instruction: Instruction) -> tuple[Frame, ...]:
        """Return the Python stack that traced an instruction, the outermost frame first.

        The stack is empty if the program does not state it.
        """
        if number := instruction.attribute(r"stack_frame_id=(\d+)"):
            return self._stack(int(number))
        file = instruction.attribute(r'source_file="([^"]*)"')
        line = instruction.attribute(r"source_line=(\d+)")
        return (Frame(file, "", int(line or 0)),) if file else ()

    @functools.cached_property
    def _parent_offset(self) -> int:
        """The number to subtract from ``parent_frame_id`` to get the parent's ID: 1 or 0.

        Some versions of XLA store the ID plus 1, so that a frame can seem to be its own parent.
        """
        frames = self._tables["StackFrames"].items()
        return int(any(_number(text, "parent_frame_id") == number for number, text in frames))

    def _stack(self, number: int) -> tuple[Frame, ...]:
        # A loop, since a stack can be deeper than Python's limit on recursion.
        chain: dict[int, None] = {}
        while number in self._tables["StackFrames"] and number not in self._stacks:
            if number in chain:
                break
            chain[number] = None
            number = self._parent(number)
        stack = self._stacks.get(number, ())
        for inner in reversed(chain):
            stack = self._stacks[inner] = (*stack, self._frame(inner))
        return stack

    def _parent(self, number: int) -> int:
        """Return the ID of the parent of a stack frame, or 0 without a parent."""
        text = self._tables["StackFrames"][number]
        return _number(text, "parent_frame_id") - self._parent_offset

    def _frame(self, number: int) -> Frame:
        frame = self._tables["StackFrames"][number]
        location = self._tables["FileLocations"][_number(frame, "file_location_id")]
        return Frame(
            self._tables["FileNames"][_number(location, "file_name_id")].strip('"'),
            self._tables["FunctionNames"][_number(location, "function_name_id")].strip('"'),
            _number(location, "line"),
        )


def arrays(text: str) -> tuple[Array, ...]:
    """Return the arrays of a result type such as ``(f32[3,8]{1,0:T(8,128)}, s32[])``."""
    found = []
    for name, sizes, order, layout in _ARRAY.findall(text):
        shape = tuple(int(size) for size in sizes.split(",") if size)
        tile = _TILE.search(layout)
        padded = math.prod(shape)
        if tile and shape:
            minor_first = [shape[int(axis)] for axis in order.split(",")]
            for position, size in enumerate(reversed([int(n) for n in tile[1].split(",")])):
                if position < len(minor_first):
                    minor_first[position] = -(-minor_first[position] // size) * size
            padded = math.prod(minor_first)
        found.append(Array(name, shape, padded))
    return tuple(found)


def bits(name: str) -> int:
    """Return the number of bits of an element type such as ``bf16``."""
    digits = re.search(r"\d+", name)
    return BITS.get(name) or (int(digits[0]) if digits else 8)


def _computations(text: str) -> Iterator[Computation]:
    current: Computation | None = None
    for raw in text.splitlines():
        if header := _COMPUTATION.match(raw):
            current = Computation(header[2], bool(header[1]), header[3], [])
            yield current
        elif raw.startswith("}"):
            current = None
        elif current is not None and (parsed := _instruction(_COMMENT.sub("", raw))):
            current.instructions.append(parsed)


def _instruction(line: str) -> Instruction | None:
    match = _OPERATION.match(line)
    if match is None:
        return None
    depth, end = 1, match.end()
    while depth and end < len(line):
        depth += {"(": 1, ")": -1}.get(line[end], 0)
        end += 1
    inside = line[match.end() : end - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(
        match[2], match[4], match[3], operands, line[end:], inside, root=bool(match[1])
    )


def _called(attributes: str) -> Iterator[str]:
    yield from _CALLED.findall(attributes)
    for branches in _BRANCHES.findall(attributes):
        yield from (name.strip().removeprefix("%") for name in branches.split(","))


def _table(text: str, name: str) -> dict[int, str]:
    """Return the table ``name`` (such as ``FileNames``) at the head of HLO text, as rows by row
    number."""
    found = re.search(rf"^{name}\n((?:\d+ .*\n)+)", text, re.MULTILINE)
    rows = (line.split(" ", 1) for line in found[1].splitlines()) if found else ()
    return {int(number): value for number, value in rows}


def _number(text: str, key: str) -> int:
    """Return the number after ``key=`` in a row of a table, or 0 if the row lacks the key."""
    match = re.search(rf"\b{key}=(\d+)", text)
    return int(match[1]) if match else 0
