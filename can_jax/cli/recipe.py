"""Loading of the recipe, protocol or study that ``--config`` selects."""

import inspect
from typing import Any

from ml_collections import ConfigDict

from can_jax.cli.modules import import_file, place_of, reason_for
from can_jax.config.shipped import KINDS, find, names_of
from can_jax.utils.errors import UserError
from can_jax.utils.files import expand_home

CONFIG = "config"  # The name of the flag.


def refuse_missing(kind: str) -> UserError:
    """Return the error for a command that requires ``--config`` but was given no such option."""
    forms = f"as a file, or by one of the names {', '.join(names_of(kind))}"
    return UserError(f"--{CONFIG}=NAME is missing: give {KINDS[kind].one}, {forms}")


def load(name: str, kind: str, also: str | None = None, flag: str = CONFIG) -> ConfigDict:
    """Load a recipe, a protocol or a study, and return its configuration.

    Args:
        name: The path of a Python file, or the name of a shipped one, such as ``vit_s``. The name
            may end with a colon and an argument for the file's ``get_config``.
        kind: The expected kind of configuration: ``recipe``, ``protocol`` or ``study``.
        also: Another accepted kind, if any.
        flag: The name of the flag, for messages.

    Raises:
        UserError: The file does not exist, has no valid ``get_config``, raises an exception, or
            returns a configuration of a kind that is not accepted.
    """
    option = f"--{flag}={name}"
    try:
        given, *argument = expand_home(name).split(":", 1)
    except UserError as error:
        raise UserError(f"--{flag}={error}") from None
    if not given:
        raise refuse_missing(kind)
    path = str(find(given, kind, option))
    if not path.endswith(".py"):
        raise UserError(f"{option}: {KINDS[kind].one} must be a Python file with get_config()")
    try:
        get_config = getattr(import_file(path), "get_config", None)
        if not callable(get_config):
            raise UserError(f"{option}: {path} has no function get_config()")
        _check_argument(get_config, argument, option)
        config = get_config(*argument)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{option}: {place_of(error, path)}: {reason_for(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{option}: get_config() of {path} does not return a ConfigDict")
    actual = kind_of(config)
    if actual not in (None, kind, also):
        expected, other = KINDS[kind], KINDS[str(actual)]
        raise UserError(
            f"{option} is {other.one}, for python -m {other.command}; here {expected.one} is "
            f"needed, such as {', '.join(names_of(kind))}"
        )
    return config


def kind_of(config: ConfigDict) -> str | None:
    """Return the kind of a configuration, inferred from its keys; None if it cannot be inferred."""
    for key, kind in (("arms", "study"), ("protocol", "protocol"), ("objective", "recipe")):
        if key in config:
            return kind
    return None


def _check_argument(get_config: Any, argument: list[str], option: str) -> None:
    try:
        inspect.signature(get_config).bind(*argument)
    except TypeError:
        if argument:
            extra = f"takes no argument; leave :{argument[0]} out"
        else:
            extra = f"needs an argument, as in {option}:ARGUMENT"
        raise UserError(f"{option}: the file {extra}") from None
