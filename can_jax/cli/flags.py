"""The flags of a command, including flags for paths and recipes."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import tuple_parser

from can_jax.cli.recipe import CONFIG, load, refuse_missing
from can_jax.config.durations import keep_overrides
from can_jax.config.shipped import KINDS, names_of
from can_jax.utils.errors import UserError
from can_jax.utils.files import checked_path

Holder = flags.FlagHolder[Any]


class PathParser(flags.ArgumentParser[str]):
    """A flag parser for a path, which expands a leading ``~`` to the home directory.

    Args:
        web: Whether the path may be on a web server.
    """

    def __init__(self, web: bool = False):
        self.web = web

    def parse(self, argument: str) -> str:
        """Return the path with the home directory expanded."""
        try:
            return checked_path(argument, self.web)
        except UserError as error:
            raise ValueError(str(error)) from None


class PathListParser(flags.ListParser):
    """A flag parser for comma-separated paths, which expands each leading ``~``."""

    def parse(self, argument: Any) -> list[str]:
        """Return the list of paths with the home directory expanded."""
        return [PathParser().parse(path) for path in super().parse(argument)]


class RecipeParser(flags.ArgumentParser[ConfigDict]):
    """A flag parser that loads a recipe, given as a file or as the name of a shipped recipe.

    Args:
        kind: The kind of configuration, a key of `can_jax.config.shipped.KINDS`.
        also: Another accepted kind, if any.

    Attributes:
        config: The recipe that was loaded last; None before the first is loaded. Error messages
            about options such as ``--config.key=value`` suggest keys of the last loaded recipe.
    """

    def __init__(self, kind: str, also: str | None = None):
        self.kind, self.also = kind, also
        self.config: ConfigDict | None = None

    def parse(self, path: str) -> ConfigDict:
        """Load the recipe, and return its configuration, locked so that no keys can be added."""
        self.config = load(path, self.kind, self.also).lock()
        return self.config


class OrNone(flags.ArgumentParser[Any]):
    """A flag parser that accepts None in addition to the values of another parser.

    Args:
        parser: The parser of values other than None.
        words: The words on the command line that stand for None.
    """

    def __init__(self, parser: flags.ArgumentParser[Any], words: tuple[str, ...]):
        self.parser, self.words = parser, words
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument: Any) -> Any:
        """Parse a value with the wrapped parser; return None for a word that stands for None."""
        return None if argument in self.words else self.parser.parse(argument)

    def flag_type(self) -> str:
        """Return the name of the value's type for ``--help``."""
        return self.parser.flag_type()


class OptionalTupleParser(tuple_parser.TupleParser):
    """A flag parser for recipe keys whose values are tuples; it parses None as ``()``.

    Comma-separated words, such as ``tensorboard,wandb``, need no quotes and no parentheses.
    """

    def parse(self, argument: Any) -> tuple[Any, ...]:
        """Return the tuple."""
        if isinstance(argument, str) and re.fullmatch(r"[a-z]\w*(,[a-z]\w*)+", argument):
            return tuple(argument.split(","))
        parsed: tuple[Any, ...] = super().parse(argument)
        return () if parsed == (None,) else parsed


class Flags:
    """The flags of one command.

    Every method except `given`, `refuse` and `recipe` defines a flag, and returns an absl
    ``FlagHolder`` whose ``value`` is available after the command line is parsed. The method
    `recipe` defines the flag ``--config``, and returns a `Recipe`.

    Attributes:
        values: The absl flags of this command, separate from absl's global flags because several
            commands define flags of the same name.
    """

    def __init__(self) -> None:
        self.values = flags.FlagValues()

    def path(
        self, name: str, help: str, default: str | None = None, *, web: bool = False
    ) -> Holder:
        """Define a flag that takes a path or a URL; ``web`` allows URLs of web servers."""
        serializer: Any = flags.ArgumentSerializer()
        return flags.DEFINE(PathParser(web=web), name, default, help, self.values, serializer)

    def paths(self, name: str, help: str) -> Holder:
        """Define a flag that takes comma-separated paths."""
        serializer: Any = flags.CsvListSerializer(",")
        return flags.DEFINE(PathListParser(), name, None, help, self.values, serializer)

    def items(self, name: str, default: Sequence[str] | None, help: str) -> Holder:
        """Define a flag that takes comma-separated words."""
        return flags.DEFINE_list(name, default, help, flag_values=self.values)

    def switch(self, name: str, default: bool, help: str) -> Holder:
        """Define a Boolean flag."""
        return flags.DEFINE_bool(name, default, help, flag_values=self.values)

    def text(self, name: str, default: str | None, help: str) -> Holder:
        """Define a flag that takes any text."""
        return flags.DEFINE_string(name, default, help, flag_values=self.values)

    def choice(self, name: str, default: str | None, values: Sequence[str], help: str) -> Holder:
        """Define a flag that takes one of ``values``."""
        return flags.DEFINE_enum(name, default, values, help, flag_values=self.values)

    def integer(
        self, name: str, default: int | None, help: str, lower_bound: int | None = None
    ) -> Holder:
        """Define a flag that takes an integer."""
        return flags.DEFINE_integer(
            name, default, help, lower_bound=lower_bound, flag_values=self.values
        )

    def number(
        self, name: str, default: float | None, help: str, lower_bound: float | None = None
    ) -> Holder:
        """Define a flag that takes a floating-point number."""
        return flags.DEFINE_float(
            name, default, help, lower_bound=lower_bound, flag_values=self.values
        )

    def given(self, name: str) -> bool:
        """Return whether the command line sets a flag, even to its default value."""
        return bool(self.values[name].present)

    def refuse(self, names: Iterable[str], reason: str) -> None:
        """Reject flags that would have no effect.

        Args:
            names: The names of the flags.
            reason: The text that follows "--name has no effect" in the message, such as ``on a
                folder``.

        Raises:
            UserError: The command line sets one of the flags.
        """
        for name in names:
            if self.given(name):
                raise UserError(f"--{name} has no effect {reason}: leave it out")

    def recipe(self, kind: str, prefix: str = "", also: str | None = None) -> "Recipe":
        """Define the flag ``--config``, which selects a recipe; ``--config.key=value`` overrides a
        key.

        Side effect: in the whole process, `ml_collections` parses int, float, str and tuple values
        with can_jax's parsers.

        Args:
            kind: The kind of configuration, such as ``recipe``; a key of
                `can_jax.config.shipped.KINDS`.
            prefix: A text that precedes the help text of the flag.
            also: Another accepted kind, if any.
        """
        number_parsers = ((int, flags.IntegerParser()), (float, flags.FloatParser()))
        for kind_of_key, parser in number_parsers:
            or_none = OrNone(parser=parser, words=("None", "none"))
            config_flags.register_flag_parser_for_type(kind_of_key, or_none)
        # For a string key, only `None` stands for None, since `none` is a value of some keys.
        or_none = OrNone(parser=flags.ArgumentParser(), words=("None",))
        config_flags.register_flag_parser_for_type(str, or_none)
        config_flags.register_flag_parser_for_type(tuple, OptionalTupleParser())
        help = f"{prefix}The {KINDS[kind].title}: a file, or one of {', '.join(names_of(kind))}."
        config_flags.DEFINE_config_file(CONFIG, None, help, flag_values=self.values)
        # absl caches parsers that are constructed without keyword arguments.
        self.values[CONFIG].parser = RecipeParser(kind=kind, also=also)
        return Recipe(self.values, kind)


class Recipe:
    """The recipe that ``--config`` selects, with the command line's overrides applied.

    Args:
        values: The absl flags of the command.
        kind: The kind of configuration, such as ``recipe``; a key of
            `can_jax.config.shipped.KINDS`.
    """

    def __init__(self, values: flags.FlagValues, kind: str):
        self._values, self._kind = values, kind

    @property
    def overrides(self) -> dict[str, Any]:
        """The values set on the command line, by dotted key; empty without a recipe."""
        if not self.given:
            return {}
        return getattr(self._values[CONFIG], "override_values", {})

    @property
    def given(self) -> bool:
        """Whether the command line selects a recipe."""
        return self._values[CONFIG].value is not None

    def read(self) -> ConfigDict:
        """Return the recipe with the command line's overrides applied.

        A duration on the command line, such as ``total_steps``, replaces the recipe's duration in
        any unit, such as ``total_epochs``.

        Raises:
            UserError: No recipe was given, or the command line sets one duration in several units.
        """
        recipe: ConfigDict | None = self._values[CONFIG].value
        if recipe is None:
            raise refuse_missing(self._kind)
        keep_overrides(recipe, self.overrides, prefix="recipe." if self._kind == "study" else "")
        return recipe
