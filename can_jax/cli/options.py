"""The command line's recipes and paths."""

import importlib.machinery
import importlib.util
import inspect
import re
import sys
import traceback
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import tuple_parser

from can_jax.config.durations import keep_overrides
from can_jax.config.shipped import KINDS, find, names_of
from can_jax.utils.errors import UserError, one_line
from can_jax.utils.files import expand_home

flags.disclaim_key_flags()  # flags defined here belong to the module that asks for them

CONFIG = "config"  # the name of the flag that takes a recipe


class PathParser(flags.ArgumentParser[str]):
    """A flag's path, in which a leading ``~`` becomes the home that it stands for."""

    def parse(self, argument: str) -> str:
        """Return the path with the home in it."""
        try:
            return expand_home(argument)
        except UserError as error:
            raise ValueError(str(error)) from None


class PathListParser(flags.ListParser):
    """A flag's paths, with commas between."""

    def parse(self, argument: Any) -> list[str]:
        """Return the paths with the home in them."""
        return [PathParser().parse(path) for path in super().parse(argument)]


class RecipeParser(flags.ArgumentParser[ConfigDict]):
    """A flag's recipe: a file, or the name of a shipped one."""

    def __init__(self, kind: str):
        self.kind = kind
        self.config: ConfigDict | None = None  # the last one, also if a key of it is set wrongly

    def parse(self, path: str) -> ConfigDict:
        """Return the locked configuration, whose keys can be set and none added."""
        self.config = load(path, self.kind).lock()
        return self.config


class OrNone(flags.ArgumentParser[Any]):
    """A flag of a key of a recipe: None, or what another parser reads.

    Args:
        parser: Of values that are not None.
        words: That stand for None.
    """

    def __init__(self, parser: flags.ArgumentParser[Any], words: tuple[str, ...]):
        self.parser, self.words = parser, words
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument: Any) -> Any:
        """Return the value."""
        return None if argument in self.words else self.parser.parse(argument)

    def flag_type(self) -> str:
        """Return the type for the help."""
        return self.parser.flag_type()


class OptionalTupleParser(tuple_parser.TupleParser):
    """A flag of a key of a recipe that is a tuple, which None empties."""

    def parse(self, argument: Any) -> tuple[Any, ...]:
        """Return the tuple."""
        parsed: tuple[Any, ...] = super().parse(argument)
        return () if parsed == (None,) else parsed


def define_path(name: str, help: str, default: str | None = None) -> flags.FlagHolder[str | None]:
    """Define a flag that takes a path."""
    return _own(
        flags.DEFINE(PathParser(), name, default, help, serializer=flags.ArgumentSerializer())
    )


def define_paths(name: str, help: str) -> flags.FlagHolder[list[str] | None]:
    """Define a flag that takes paths with commas between."""
    return _own(
        flags.DEFINE(PathListParser(), name, None, help, serializer=flags.CsvListSerializer(","))
    )


def define_recipe(kind: str, prefix: str = "") -> flags.FlagHolder[ConfigDict | None]:
    """Define the flag ``--config``, whose keys ``--config.key=value`` changes.

    Args:
        kind: key of `can_jax.config.shipped.KINDS`.
        prefix: of the help.
    """
    numbers = ((int, flags.IntegerParser()), (float, flags.FloatParser()))
    for kind_of_key, parser in numbers:
        or_none = OrNone(parser=parser, words=("None", "none"))
        config_flags.register_flag_parser_for_type(kind_of_key, or_none)
    # `none` is a value of some keys.
    or_none = OrNone(parser=flags.ArgumentParser(), words=("None",))
    config_flags.register_flag_parser_for_type(str, or_none)
    config_flags.register_flag_parser_for_type(tuple, OptionalTupleParser())
    help = f"{prefix}The {KINDS[kind].title}: a file, or one of {', '.join(names_of(kind))}."
    holder = config_flags.DEFINE_config_file(CONFIG, None, help)
    flags.FLAGS[CONFIG].parser = RecipeParser(kind=kind)  # by keyword, or absl shares it
    return _own(holder)


def _own(holder: flags.FlagHolder[Any]) -> flags.FlagHolder[Any]:
    """Let the command's ``--help`` show a flag, whoever called us: tests wrap each function."""
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[holder.name])
    return holder


def demand_recipe(recipe: ConfigDict | None, kind: str) -> ConfigDict:
    """Return the recipe that was given, without durations that the command line replaced.

    Raises:
        UserError: None was given, or the command line sets a duration twice.
    """
    if recipe is None:
        known = f"a file, or one of {', '.join(names_of(kind))}"
        raise UserError(f"--config=NAME is missing: the {KINDS[kind].title}, {known}")
    keep_overrides(recipe, overrides(), prefix="recipe." if kind == "study" else "")
    return recipe


def overrides() -> dict[str, Any]:
    """Return the values of a recipe that the command line sets, by dotted key."""
    return getattr(flags.FLAGS[CONFIG], "override_values", {}) if CONFIG in flags.FLAGS else {}


def load(name: str, kind: str) -> ConfigDict:
    """Return the configuration of a recipe.

    Args:
        name: a path or a shipped name; after a colon, the argument of its ``get_config``.
        kind: key of `can_jax.config.shipped.KINDS`.

    Raises:
        UserError: there is no such recipe, it is of another kind, or it fails; says where.
    """
    option = f"--{CONFIG}={name}"
    try:
        given, *argument = expand_home(name).split(":", 1)
    except UserError as error:
        raise UserError(f"--{CONFIG}={error}") from None
    if not given:
        demand_recipe(None, kind)
    path = str(find(given, kind, option))
    if path.endswith((".json", ".yaml", ".yml", ".toml")):
        raise UserError(f"{option}: {KINDS[kind].one} is a Python file with get_config()")
    try:
        get_config = getattr(_import(path), "get_config", None)
        if get_config is None:
            raise UserError(f"{option}: {path} has no function get_config()")
        _check_argument(get_config, argument, option)
        config = get_config(*argument)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{option}: {_where(error, path)}: {_reason(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{option}: get_config() of {path} does not return a ConfigDict")
    actual = kind_of(config)
    if actual not in (None, kind):
        wanted, taken = KINDS[kind], KINDS[str(actual)]
        raise UserError(
            f"{option} is {taken.one}, for python -m {taken.command}; here {wanted.one} is needed, "
            f"such as {', '.join(names_of(kind))}"
        )
    return config


def kind_of(config: ConfigDict) -> str | None:
    """Return the kind that a configuration looks like, None if like none."""
    for key, kind in (("arms", "study"), ("protocol", "protocol"), ("objective", "recipe")):
        if key in config:
            return kind
    return None


def _import(path: str) -> ModuleType:
    """Run a file as a module of its own."""
    loader = importlib.machinery.SourceFileLoader(f"{CONFIG}_of_flag", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


def _check_argument(get_config: Any, argument: list[str], option: str) -> None:
    try:
        inspect.signature(get_config).bind(*argument)
    except TypeError:
        if argument:
            extra = f"takes no argument; leave :{argument[0]} out"
        else:
            extra = f"needs an argument, as in {option}:ARGUMENT"
        raise UserError(f"{option}: this recipe {extra}") from None


def _where(error: Exception, path: str) -> str:
    """Return file and line at which a recipe failed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    # Of a recipe, or of one that it starts from, and not of a library that it calls.
    frames = traceback.extract_tb(error.__traceback__)
    start = next((i for i, frame in enumerate(frames) if frame.filename == path), len(frames))
    own = [f for f in frames[start:] if f.filename == path or f.name == "get_config"]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else path


def _reason(error: Exception) -> str:
    """Return what a recipe failed with, without Python's names where the text speaks for itself."""
    if isinstance(error, SyntaxError):
        return error.msg
    text = str(error.args[0]) if error.args else ""
    if found := re.search(r'Key "(\w+)" does not exist', text) or re.match(r"'(\w+)'\s+Did", text):
        near = re.search(r'Did you mean "(\w+)" instead', text)  # so ConfigDict ends its text
        return f"unknown key {found[1]}" + (f"; did you mean {near[1]}?" if near else "")
    if isinstance(error, KeyError) or not text:
        return one_line(error)
    return re.sub(r"<class '([\w.]+)'>", r"\1", " ".join(str(error).split()))
