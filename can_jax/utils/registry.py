"""Registries, which map the names in a configuration to objects, such as data sources."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, overload

from can_jax.utils.errors import UserError
from can_jax.utils.nearest import nearest

MAY_BE_REGISTERED = "or one that a module of --modules registers"
T = TypeVar("T")
V = TypeVar("V")
MISSING: Any = object()


class Registry(Generic[T]):
    """A mapping from names to values, to which a user's modules can add values.

    Iteration yields the names in the order of their registration.

    Args:
        kind: The noun for a registered value in messages, such as ``data source``.
    """

    all: ClassVar[list["Registry[Any]"]] = []  # every registry

    def __init__(self, kind: str):
        self.kind = kind
        Registry.all.append(self)
        self._values: dict[str, T] = {}
        self._origins: dict[str, str] = {}

    @overload
    def register(self, name: str) -> Callable[[V], V]: ...
    @overload
    def register(self, name: str, value: V) -> V: ...
    def register(self, name: str, value: Any = MISSING) -> Any:
        """Add a value and return it, or return a decorator that adds a function or class.

        A module can register its own names again, for example when it is executed a second time.

        Args:
            name: The name, a Python identifier, by which a configuration selects the value.
            value: The value to add. Without a value, a decorator is returned.

        Raises:
            ValueError: The name is not an identifier, or another module has already registered a
                different value under this name.
        """
        origin = _importing_file()

        def add(value: Any) -> Any:
            if not isinstance(name, str) or not name.isidentifier():
                raise ValueError(f"the {self.kind} {name!r}: give a Python identifier as its name")
            if self._origins.get(name, origin) != origin and self._values[name] != value:
                raise ValueError(
                    f"the {self.kind} {name!r} is already registered by {self._origins[name]}: "
                    "give yours another name"
                )
            self._values[name], self._origins[name] = value, origin
            return value

        return add if value is MISSING else add(value)

    @contextlib.contextmanager
    def temporarily(self, name: str, value: T) -> Iterator[None]:
        """Register a value within this context, in place of any other value of this name. When the
        context ends, all registrations made within it are undone."""
        before = dict(self._values), dict(self._origins)
        self._values[name], self._origins[name] = value, _importing_file()
        try:
            yield
        finally:
            self._values, self._origins = before

    def remove(self, name: str) -> None:
        """Remove a name, which must be registered, and its value."""
        del self._values[name], self._origins[name]

    def names(self) -> tuple[str, ...]:
        """Return all registered names."""
        return tuple(self._values)

    def get(self, name: str) -> T:
        """Return the value that is registered under a name.

        Raises:
            UserError: No value has this name. The message suggests a similar name, or lists all
                names.
        """
        if name in self:
            return self._values[name]
        near = nearest(str(name), self.names())
        hint = f"did you mean {near!r}?" if near else f"choose one of {', '.join(self)}"
        raise UserError(f"there is no {self.kind} {name!r}; {hint}")

    def items(self) -> tuple[tuple[str, T], ...]:
        """Return all pairs of a name and its value."""
        return tuple(self._values.items())

    def origin(self, name: str) -> str:
        """Return the file that registered a name, or the name of a module without a file."""
        return self._origins[name]

    def __contains__(self, name: object) -> bool:
        """Return whether a name is registered."""
        return isinstance(name, str) and name in self._values

    def __iter__(self) -> Iterator[str]:
        """Iterate over the registered names."""
        return iter(self.names())

    def __len__(self) -> int:
        """Return the number of registered names."""
        return len(self._values)


def user_modules() -> list[str]:
    """Return the sorted paths of the files outside this package that registered a value.

    A module without a file, as in a notebook, is listed by its name.
    """
    package = Path(__file__).parents[1]
    origins = {origin for registry in Registry.all for origin in registry._origins.values()}
    return sorted(origin for origin in origins if not Path(origin).is_relative_to(package))


def _importing_file() -> str:
    """Return the file of the module being imported, or the name of a module that has no file."""
    frame = sys._getframe(1)
    while frame.f_code.co_name != "<module>" and frame.f_back:
        frame = frame.f_back
    return str(frame.f_globals.get("__file__") or frame.f_globals.get("__name__"))
