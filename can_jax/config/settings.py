"""Declarations of configuration keys: the default, the values that are allowed, and the meaning.

A table is a nested dict of `Key`. `configuration` builds its defaults, and `check_table` checks a
configuration against it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from ml_collections import ConfigDict, FieldReference

from can_jax.utils.errors import UserError
from can_jax.utils.nearest import nearest

Table = dict[str, Any]  # of `Key`, or of tables
AS_DEFAULT: Any = object()
MOST_SHOWN = 200  # characters of a value in a message


def is_finite(value: int | float) -> bool:
    """Return whether a number is finite as a float, which whole numbers of 400 digits are not."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def shown(value: Any) -> str:
    """Return a value for a message, the middle of a long one left out."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no whole number of more than 4,300 digits
        return "a number of thousands of digits"
    half = MOST_SHOWN // 2
    return text if len(text) <= MOST_SHOWN else f"{text[:half]}...{text[-half:]}"


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number.

    Attributes:
        low, high: The smallest and the largest value.
        above, below: Bounds that are not reached themselves.
        also: Single values that are allowed beside the range, such as 0 for "off".
    """

    low: int | float = -math.inf
    high: int | float = math.inf
    _: dataclasses.KW_ONLY
    above: int | float = -math.inf
    below: int | float = math.inf
    also: tuple[int | float, ...] = ()
    type: ClassVar[type] = float
    noun: ClassVar[str] = "number"

    def accepts(self, value: Any) -> bool:
        """Return whether the value is allowed."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return value in self.also or self.holds(value)

    def holds(self, value: int | float) -> bool:
        """Return whether a number is in the range."""
        return (
            is_finite(value) and self.low <= value <= self.high and self.above < value < self.below
        )

    def describe(self, plural: bool = False) -> str:
        """Return the range in words, such as ``numbers above 0, at most 1``."""
        bounds = (
            ("at least", self.low), ("above", self.above),
            ("at most", self.high), ("below", self.below),
        )  # fmt: skip
        words = ", ".join(f"{name} {bound:,g}" for name, bound in bounds if math.isfinite(bound))
        noun = f"{self.noun}s" if plural else f"a {self.noun}"
        others = "".join(f", or {value:g}" for value in self.also)
        return f"{noun} {words}".rstrip() + others


@dataclasses.dataclass(frozen=True)
class Whole(Number):
    """A whole number; ``multiple`` is a number that divides it."""

    _: dataclasses.KW_ONLY
    multiple: int = 1
    type: ClassVar[type] = int
    noun: ClassVar[str] = "whole number"

    def holds(self, value: int | float) -> bool:
        """Return whether a number is in the range, and whole."""
        return isinstance(value, int) and super().holds(value) and value % self.multiple == 0

    def describe(self, plural: bool = False) -> str:
        """Return the range in words."""
        words = super().describe(plural)
        return words if self.multiple == 1 else f"{words}, divisible by {self.multiple}"


@dataclasses.dataclass(frozen=True)
class Switch:
    """True or false."""

    type: ClassVar[type] = bool

    def accepts(self, value: Any) -> bool:
        """Return whether the value is allowed."""
        return isinstance(value, bool)

    def describe(self, plural: bool = False) -> str:
        """Return the values in words."""
        return "True or False"


@dataclasses.dataclass(frozen=True)
class Text:
    """A string that is not empty."""

    type: ClassVar[type] = str

    def accepts(self, value: Any) -> bool:
        """Return whether the value is allowed."""
        return isinstance(value, str) and bool(value)

    def describe(self, plural: bool = False) -> str:
        """Return the values in words."""
        return "strings" if plural else "a string that is not empty"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a few strings."""

    choices: tuple[str, ...]
    type: ClassVar[type] = str

    def accepts(self, value: Any) -> bool:
        """Return whether the value is one of them."""
        return isinstance(value, str) and value in self.choices

    def describe(self, plural: bool = False) -> str:
        """Return the choices in words."""
        return f"one of {', '.join(self.choices)}"


@dataclasses.dataclass(frozen=True)
class Several:
    """A tuple.

    Attributes:
        of: The kind of its elements.
        length: How many there are; any number by default.
        ascending: Whether no element is smaller than the one before it.
        empty: Whether there may be none.
    """

    of: "Kind"
    _: dataclasses.KW_ONLY
    length: int | None = None
    ascending: bool = False
    empty: bool = True
    type: ClassVar[type] = tuple

    def accepts(self, value: Any) -> bool:
        """Return whether the value is a tuple or a list of allowed elements."""
        if not isinstance(value, tuple | list) or not all(map(self.of.accepts, value)):
            return False
        if self.length not in (None, len(value)) or not (value or self.empty):
            return False
        return not self.ascending or list(value) == sorted(value)

    def describe(self, plural: bool = False) -> str:
        """Return length, elements and order in words."""
        count = "a tuple of" if self.length is None else f"a tuple of {self.length}"
        order = ", in ascending order" if self.ascending else ""
        return f"{count} {self.of.describe(plural=True)}{order}"


@dataclasses.dataclass(frozen=True)
class Special:
    """A value that a function of its own checks.

    Attributes:
        words: The values that are allowed.
        accepts: Returns whether a value is.
        type: That the command line parses; `object` is any Python literal.
    """

    words: str
    accepts: Callable[[Any], bool]
    type: type = object

    def describe(self, plural: bool = False) -> str:
        """Return the values in words."""
        return self.words


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A tuple of dicts, each with keys of a table.

    Attributes:
        table: The keys that a dict may have.
        needed: The keys that each has to have.
        elsewhere: For keys that hold for all dicts, the dotted key that sets them.
    """

    table: Table
    _: dataclasses.KW_ONLY
    needed: tuple[str, ...] = ()
    elsewhere: dict[str, str] = dataclasses.field(default_factory=dict)
    type: ClassVar[type] = tuple

    def accepts(self, value: Any) -> bool:
        """Return whether the value is a tuple or a list of such dicts."""
        if not isinstance(value, tuple | list) or not all(isinstance(v, dict) for v in value):
            return False
        return not any(map(self.complaint, value))

    def complaint(self, block: dict[Any, Any]) -> str:
        """Return what is wrong with a dict and what to give instead; empty if nothing is."""
        for name in self.needed:
            if block.get(name) is None:
                return f"{name} is missing: give {self.table[name].describe()}"
        for name, value in block.items():
            if name in self.elsewhere:
                return f"{name!r} holds for all of them: set config.{self.elsewhere[name]}"
            if name not in self.table:
                near = nearest(str(name), list(self.table))
                hint = f"did you mean {near!r}?" if near else f"keys are {', '.join(self.table)}"
                return f"unknown key {name!r}; {hint}"
            if not self.table[name].accepts(value):
                return f"{name}={shown(value)}: give {self.table[name].describe()}"
        return ""

    def describe(self, plural: bool = False) -> str:
        """Return the keys in words."""
        return f"a tuple of dicts, each with some of the keys {', '.join(self.table)}"


Kind = Number | Switch | Text | Choice | Several | Special | Blocks


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a configuration.

    Attributes:
        default: The value unless a recipe sets another; None where the key is not set.
        kind: The values that are allowed.
        meaning: For the reference of keys.
        unit: Of the value.
        optional: Whether the key may be None; always true where that is the default.
        required: Whether a recipe has to replace the default None.
        before: The value that a configuration stands for which was stored before there was this
            key; by default the default.
    """

    default: Any
    kind: Kind
    meaning: str
    _: dataclasses.KW_ONLY
    unit: str = ""
    optional: bool = False
    required: bool = False
    before: Any = AS_DEFAULT

    @property
    def may_be_none(self) -> bool:
        """Whether the key may be left unset."""
        return self.optional or self.default is None

    def accepts(self, value: Any) -> bool:
        """Return whether the value is allowed."""
        return self.may_be_none if value is None else self.kind.accepts(value)

    def describe(self) -> str:
        """Return the allowed values in words."""
        or_none = self.may_be_none and not self.required
        return self.kind.describe() + (", or None" if or_none else "")


class Value(FieldReference):
    """The value of a key, which `ConfigDict` must not turn into another value in silence.

    None empties a tuple, where that is allowed and None is not.
    """

    def __init__(self, key: Key):
        empties = key.kind.type is tuple and key.accepts(()) and not key.may_be_none
        self._unset = () if empties else None
        super().__init__(key.default, field_type=key.kind.type)

    def set(self, value: Any, type_safe: bool = True) -> None:
        """Set the value. A number that is no float stays as it is, for `check_table` to refuse."""
        odd = isinstance(value, bool) or (isinstance(value, int) and not is_finite(value))
        if odd and self.get_type() is float:
            super().set(FieldReference(value), type_safe=False)
        else:
            super().set(self._unset if value is None else value, type_safe)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy."""
        super().__setstate__(state)
        self._unset = state["_unset"]


def configuration(table: Table) -> ConfigDict:
    """Return the defaults of a table. Every key keeps its type while it is None."""

    def value(entry: Any) -> Any:
        if isinstance(entry, dict):
            return configuration(entry)
        return Value(entry)

    return ConfigDict({name: value(entry) for name, entry in table.items()})


def flat_keys(table: Table, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Yield the dotted name of each key of a table, and the key."""
    for name, entry in table.items():
        if isinstance(entry, dict):
            yield from flat_keys(entry, f"{prefix}{name}.")
        else:
            yield prefix + name, entry


def refuse(key: str, value: Any, kind: Key | Kind) -> None:
    """Raise `UserError` unless a key or a kind accepts the value."""
    if kind.accepts(value):
        return
    own = kind.kind if isinstance(kind, Key) else kind
    if isinstance(own, Blocks) and isinstance(value, tuple | list):
        for number, block in enumerate(value):
            if isinstance(block, dict) and (reason := own.complaint(block)):
                raise UserError(f"config.{key}[{number}]: {reason}")
    raise UserError(f"config.{key}={shown(value)}: give {kind.describe()}")


def check_table(config: Any, table: Table, origin: str, prefix: str = "") -> None:
    """Check that a configuration has every key of the table, with an allowed value, and no other.

    Args:
        config: Of a recipe, a `ConfigDict` or a dict; lists in it become tuples.
        table: That its defaults were made from.
        origin: The function that a recipe starts from.
        prefix: Of its keys.

    Raises:
        UserError: Names the first key that is wrong, and what to give instead.
    """
    for name in config:
        if name not in table:
            known = [key for key, _ in flat_keys(table, prefix)]
            near = nearest(f"{prefix}{name}", known)
            hint = f"did you mean config.{near}?" if near else f"{origin} has all keys"
            raise UserError(f"unknown key config.{prefix}{name}; {hint}")
    for name, entry in table.items():
        key = prefix + name
        if name not in config:
            raise UserError(f"config.{key} is missing; start a recipe from {origin}")
        value = config[name]
        if isinstance(entry, dict):
            if not isinstance(value, ConfigDict | dict):
                raise UserError(
                    f"config.{key}={shown(value)} replaces a block of keys: set one of them, such "
                    f"as config.{key}.{next(iter(entry))}"
                )
            check_table(value, entry, origin, f"{key}.")
        elif isinstance(value, ConfigDict):
            raise UserError(f"config.{key} is a block of keys: give {entry.describe()}")
        else:
            refuse(key, value, entry)
