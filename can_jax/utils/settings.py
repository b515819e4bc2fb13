"""Declarations of configuration keys: default, allowed values, meaning and unit.

A table of keys is a nested dict of `Key` objects. `configuration` builds a `ConfigDict` of the
defaults in a table, and `check_table` checks a configuration against a table.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ClassVar

from ml_collections import ConfigDict, FieldReference

from can_jax.utils.errors import UserError
from can_jax.utils.nearest import nearest
from can_jax.utils.registry import MAY_BE_REGISTERED, Registry
from can_jax.utils.renamed import Block

Table = Mapping[str, Any]  # the values are `Key` or tables
AS_DEFAULT: Any = object()
MOST_SHOWN = 200  # characters of a value in a message


def is_finite(value: int | float) -> bool:
    """Return whether a number is finite and not too large for a float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def shown(value: Any) -> str:
    """Return the `repr` of a value for a message; the middle of a long text is omitted."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than 4,300 digits
        return "a number with thousands of digits"
    half = MOST_SHOWN // 2
    return text if len(text) <= MOST_SHOWN else f"{text[:half]}...{text[-half:]}"


@dataclasses.dataclass(frozen=True)
class Number:
    """The type of a key whose value is a finite number in a range.

    Attributes:
        low, high: The inclusive bounds of the range; infinite by default.
        above, below: The exclusive bounds of the range; infinite by default.
        also: Further allowed values outside the range, such as 0 for "off".
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
        """Return whether a value is allowed."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return value in self.also or self.holds(value)

    def holds(self, value: int | float) -> bool:
        """Return whether a number is in the range."""
        return (
            is_finite(value) and self.low <= value <= self.high and self.above < value < self.below
        )

    def describe(self, plural: bool = False) -> str:
        """Describe the range, such as ``a number above 0, at most 1``."""
        bounds = (
            ("at least", self.low), ("above", self.above),
            ("at most", self.high), ("below", self.below),
        )  # fmt: skip
        words = ", ".join(
            f"{name} {bound:,}" if isinstance(bound, int) else f"{name} {bound:,g}"
            for name, bound in bounds
            if math.isfinite(bound)
        )
        noun = f"{self.noun}s" if plural else f"a {self.noun}"
        others = "".join(f", or {value:g}" for value in self.also)
        return f"{noun} {words}".rstrip() + others


@dataclasses.dataclass(frozen=True)
class Whole(Number):
    """The type of a key whose value is an integer in a range.

    Attributes:
        multiple: A number by which the value must be divisible; 1 by default.
    """

    _: dataclasses.KW_ONLY
    multiple: int = 1
    type: ClassVar[type] = int
    noun: ClassVar[str] = "whole number"

    def holds(self, value: int | float) -> bool:
        """Return whether a value is an integer in the range and divisible by ``multiple``."""
        return isinstance(value, int) and super().holds(value) and value % self.multiple == 0

    def describe(self, plural: bool = False) -> str:
        """Describe the range and the divisor of allowed integers."""
        words = super().describe(plural)
        return words if self.multiple == 1 else f"{words}, divisible by {self.multiple}"


@dataclasses.dataclass(frozen=True)
class Switch:
    """The type of a key whose value is True or False."""

    type: ClassVar[type] = bool

    def accepts(self, value: Any) -> bool:
        """Return whether a value is a bool."""
        return isinstance(value, bool)

    def describe(self, plural: bool = False) -> str:
        """Describe the allowed values."""
        return "True or False"


@dataclasses.dataclass(frozen=True)
class Text:
    """The type of a key whose value is a nonempty string."""

    type: ClassVar[type] = str

    def accepts(self, value: Any) -> bool:
        """Return whether a value is a nonempty string."""
        return isinstance(value, str) and bool(value)

    def describe(self, plural: bool = False) -> str:
        """Describe the allowed values."""
        return "strings" if plural else "a string that is not empty"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The type of a key whose value is one of several strings.

    Attributes:
        choices: The allowed strings, or a `Registry` whose names are allowed.
    """

    choices: Collection[str]
    type: ClassVar[type] = str

    def accepts(self, value: Any) -> bool:
        """Return whether a value is one of the choices."""
        return isinstance(value, str) and value in self.choices

    def describe(self, plural: bool = False) -> str:
        """Describe the choices."""
        others = f", {MAY_BE_REGISTERED}" if isinstance(self.choices, Registry) else ""
        return f"{'names among' if plural else 'one of'} {', '.join(self.choices)}{others}"


@dataclasses.dataclass(frozen=True)
class Several:
    """The type of a key whose value is a tuple.

    Attributes:
        of: The type of each element, such as a `Number`.
        length: The required number of elements; None for any number.
        ascending: Whether the elements must be in ascending order; equal elements are allowed.
        empty: Whether the tuple can be empty.
    """

    of: "Kind"
    _: dataclasses.KW_ONLY
    length: int | None = None
    ascending: bool = False
    empty: bool = True
    type: ClassVar[type] = tuple

    def accepts(self, value: Any) -> bool:
        """Return whether a value is a tuple or list of allowed elements."""
        if not isinstance(value, tuple | list) or not all(map(self.of.accepts, value)):
            return False
        if self.length not in (None, len(value)) or not (value or self.empty):
            return False
        return not self.ascending or list(value) == sorted(value)

    def describe(self, plural: bool = False) -> str:
        """Describe the length, the elements and the order of an allowed tuple."""
        noun = "tuple" if self.empty else "nonempty tuple"
        count = "" if self.length is None else f"{self.length} "
        order = ", in ascending order" if self.ascending else ""
        return f"a {noun} of {count}{self.of.describe(plural=True)}{order}"


@dataclasses.dataclass(frozen=True)
class Special:
    """The type of a key whose value a custom function checks.

    Attributes:
        words: A description of the allowed values, for messages.
        accepts: A function that returns whether a value is allowed.
        type: The type to which the command line converts a value; `object` for any Python literal.
    """

    words: str
    accepts: Callable[[Any], bool]
    type: type = object

    def describe(self, plural: bool = False) -> str:
        """Describe the allowed values."""
        return self.words


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The type of a key whose value is a tuple of dicts, such as a list of datasets.

    Attributes:
        table: The `Key` of each entry that a dict can have, by name.
        needed: The names of the entries that each dict must have.
        elsewhere: The names of shared settings that a dict cannot contain, each with the dotted
            configuration key that sets it for all dicts.
    """

    table: Table
    _: dataclasses.KW_ONLY
    needed: tuple[str, ...] = ()
    elsewhere: dict[str, str] = dataclasses.field(default_factory=dict)
    type: ClassVar[type] = tuple

    def accepts(self, value: Any) -> bool:
        """Return whether a value is a tuple or list of allowed dicts."""
        if not isinstance(value, tuple | list) or not all(isinstance(v, dict) for v in value):
            return False
        return not any(map(self.complaint, value))

    def complaint(self, block: dict[Any, Any]) -> str:
        """Return a message about the first error in a dict, or "" if the dict is valid."""
        for name in self.needed:
            if block.get(name) is None:
                return f"{name} is missing: give {self.table[name].describe()}"
        for name, value in block.items():
            if name in self.elsewhere:
                return f"{name!r} is the same for all entries: set config.{self.elsewhere[name]}"
            if name not in self.table:
                near = nearest(str(name), list(self.table))
                hint = f"did you mean {near!r}?" if near else f"keys are {', '.join(self.table)}"
                return f"unknown key {name!r}; {hint}"
            if not self.table[name].accepts(value):
                return f"{name}={shown(value)}: give {self.table[name].describe()}"
        return ""

    def describe(self, plural: bool = False) -> str:
        """Describe an allowed tuple, with the keys of its dicts."""
        return f"a tuple of dicts, each with some of the keys {', '.join(self.table)}"


Kind = Number | Switch | Text | Choice | Several | Special | Blocks


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a configuration.

    Attributes:
        default: The default value; None if the key has no default.
        kind: The type and range of the allowed values.
        meaning: The description of the key in the documentation.
        unit: The unit of the value; empty if it has none.
        optional: Whether None is allowed. A key with the default None always allows None.
        required: Whether a recipe must replace the default None.
        before: The value that is assumed for stored configurations without this key, so that older
            runs keep their behavior. By default, ``before`` equals ``default``.
        was_default: Whether ``before`` was the default of an older version. A run that began with a
            former default keeps this value on resume, unless the configuration sets another one.
    """

    default: Any
    kind: Kind
    meaning: str
    _: dataclasses.KW_ONLY
    unit: str = ""
    optional: bool = False
    required: bool = False
    before: Any = AS_DEFAULT
    was_default: bool = False

    @property
    def may_be_none(self) -> bool:
        """Whether the value of the key can be None."""
        return self.optional or self.default is None

    def accepts(self, value: Any) -> bool:
        """Return whether a value is allowed."""
        return self.may_be_none if value is None else self.kind.accepts(value)

    def describe(self) -> str:
        """Describe the allowed values."""
        or_none = self.may_be_none and not self.required
        return self.kind.describe() + (", or None" if or_none else "")


class Value(FieldReference):
    """The value of a key in a `ConfigDict`, without the silent type conversion of `FieldReference`.

    Setting a tuple key to None stores ``()`` if the key allows ``()`` but not None.
    """

    def __init__(self, key: Key):
        empties = key.kind.type is tuple and key.accepts(()) and not key.may_be_none
        self._unset = () if empties else None
        super().__init__(key.default, field_type=key.kind.type)

    def set(self, value: Any, type_safe: bool = True) -> None:
        """Set the value.

        A float key stores a bool or a huge integer unchanged, so that `check_table` rejects it.
        """
        odd = isinstance(value, bool) or (isinstance(value, int) and not is_finite(value))
        if odd and self.get_type() is float:
            super().set(FieldReference(value), type_safe=False)
        else:
            super().set(self._unset if value is None else value, type_safe)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state of a copied or unpickled value."""
        super().__setstate__(state)
        self._unset = state["_unset"]


def configuration(table: Table) -> ConfigDict:
    """Return the defaults of a table as a `ConfigDict` in which each key has a fixed type.

    The `ConfigDict` also accepts the old names of renamed keys (`can_jax.utils.renamed`).
    """

    def value(entry: Any) -> Any:
        return configuration(entry) if isinstance(entry, Mapping) else Value(entry)

    return Block({name: value(entry) for name, entry in table.items()})


def flat_keys(table: Table, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Yield the dotted name and the `Key` of each key of a table."""
    for name, entry in table.items():
        if isinstance(entry, Mapping):
            yield from flat_keys(entry, f"{prefix}{name}.")
        else:
            yield prefix + name, entry


def refuse(key: str, value: Any, kind: Key | Kind) -> None:
    """Raise a `UserError` if the value of a dotted configuration key is not allowed."""
    if kind.accepts(value):
        return
    own = kind.kind if isinstance(kind, Key) else kind
    if isinstance(own, Blocks) and isinstance(value, tuple | list):
        for index, block in enumerate(value):
            if isinstance(block, dict) and (reason := own.complaint(block)):
                raise UserError(f"config.{key}[{index}]: {reason}")
    raise UserError(f"config.{key}={shown(value)}: give {kind.describe()}")


def check_table(config: Any, table: Table, origin: str, prefix: str = "") -> None:
    """Check that a configuration has exactly the keys of a table, with allowed values.

    Args:
        config: The configuration of a recipe, as a `ConfigDict` or a dict.
        table: The nested dict of the allowed keys.
        origin: The name of the function that returns the default configuration, for messages.
        prefix: The dotted name of the checked block, such as ``model.``; empty for all blocks.

    Raises:
        UserError: A key is unknown or missing, or its value is not allowed.
    """
    for name in config:
        if name not in table:
            known_keys = [key for key, _ in flat_keys(table, prefix)]
            near = nearest(f"{prefix}{name}", known_keys)
            hint = f"did you mean config.{near}?" if near else f"{origin} has all keys"
            raise UserError(f"unknown key config.{prefix}{name}; {hint}")
    for name, entry in table.items():
        key = prefix + name
        if name not in config:
            raise UserError(f"config.{key} is missing; base the configuration on {origin}")
        value = config[name]
        if isinstance(entry, Mapping):
            if not isinstance(value, ConfigDict | dict):
                raise UserError(
                    f"config.{key}={shown(value)} replaces a block of keys: set one of them, such "
                    f"as config.{key}.{next(iter(entry))}"
                )
            check_table(value, entry, origin, f"{key}.")
        elif isinstance(value, ConfigDict):
            raise UserError(f"config.{key} is set to a block of keys: give {entry.describe()}")
        else:
            refuse(key, value, entry)
