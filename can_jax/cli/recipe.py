"""Load the recipe, protocol or study that ``--config`` names."""

import importlib.machinery
import importlib.util
import inspect
import re
import sys
import traceback
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from can_jax.config.shipped import KINDS, find, names_of
from can_jax.utils.errors import UserError, one_line
from can_jax.utils.files import expand_home

CONFIG = "config"  # the name of the flag


def refuse_missing(kind: str) -> UserError:
    """Return the error of a command that needs a recipe and was given none."""
    known = f"a file, or one of {', '.join(names_of(kind))}"
    return UserError(f"--{CONFIG}=NAME is missing: the {KINDS[kind].title}, {known}")


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
        raise refuse_missing(kind)
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
