"""Registries of the values that a configuration names, such as the sources of `data.source`."""

import sys
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, overload

from can_jax.utils.errors import UserError
from can_jax.utils.nearest import nearest

T = TypeVar("T")
V = TypeVar("V")
MISSING: Any = object()


class Registry(Generic[T]):
    """A collection of values by name, to which a user's module can add.

    It iterates over its names, in the order of their registration.

    Args:
        kind: The noun for a value in messages, such as ``data source``.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._values: dict[str, T] = {}
        self._origins: dict[str, str] = {}

    @overload
    def register(self, name: str) -> Callable[[V], V]: ...
    @overload
    def register(self, name: str, value: V) -> V: ...
    def register(self, name: str, value: Any = MISSING) -> Any:
        """Add a value and return it, or return a decorator that adds a function or class.

        A module that is executed again replaces its own values.

        Args:
            name: The name by which a configuration selects the value; a Python identifier.
            value: The value to add; none to get the decorator.

        Raises:
            ValueError: The name is no identifier, or another module has registered it.
        """
        origin = _importing_file()

        def add(value: Any) -> Any:
            if not isinstance(name, str) or not name.isidentifier():
                raise ValueError(f"the {self.kind} {name!r}: a name has letters, digits and _ only")
            if self._origins.get(name, origin) != origin and self._values[name] != value:
                raise ValueError(
                    f"the {self.kind} {name!r} is already registered by {self._origins[name]}: "
                    "give yours another name"
                )
            self._values[name], self._origins[name] = value, origin
            return value

        return add if value is MISSING else add(value)

    def names(self) -> tuple[str, ...]:
        """Return all names."""
        return tuple(self._values)

    def get(self, name: str) -> T:
        """Return the value with a name.

        Raises:
            UserError: There is none; the message suggests a name.
        """
        if name in self:
            return self._values[name]
        near = nearest(str(name), self.names())
        hint = f"did you mean {near!r}?" if near else f"it is one of {', '.join(self)}"
        raise UserError(f"there is no {self.kind} {name!r}; {hint}")

    def items(self) -> tuple[tuple[str, T], ...]:
        """Return all pairs of a name and its value."""
        return tuple(self._values.items())

    def origin(self, name: str) -> str:
        """Return the file that registered a name, or the module's name if it has no file."""
        return self._origins[name]

    def __contains__(self, name: object) -> bool:
        """Return whether a name is registered."""
        return isinstance(name, str) and name in self._values

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.names())

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._values)


def _importing_file() -> str:
    """Return the file of the module that is being executed, or its name in a notebook."""
    frame = sys._getframe(1)
    while frame.f_code.co_name != "<module>" and frame.f_back:
        frame = frame.f_back
    return str(frame.f_globals.get("__file__") or frame.f_globals.get("__name__"))
