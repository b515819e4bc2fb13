"""Error messages for invalid options, with suggestions of valid ones."""

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from can_jax.cli.flags import PathListParser, PathParser, RecipeParser
from can_jax.cli.recipe import CONFIG, load
from can_jax.config.shipped import names_of
from can_jax.utils.nearest import nearest
from can_jax.utils.renamed import RENAMED

OPTION = re.compile(r"--?([A-Za-z][\w.-]*)(=|$)")  # An argument that looks like an option.
VALUES = {int: "a whole number", float: "a number", bool: "true or false"}


def plain_message(values: flags.FlagValues, error: Exception, argv: list[str]) -> str:
    """Return a one-line message for a parse error; for an unknown option, suggest the nearest one.

    Args:
        values: The absl flags of the command.
        error: The exception raised while the flags were parsed.
        argv: The arguments without the program name.
    """
    if swallowed := missing_value(values, argv):
        return swallowed
    if isinstance(error, flags.UnrecognizedFlagError):
        name = error.flagname
        if CONFIG in values and name.startswith(f"{CONFIG}.") and _recipe(values) is None:
            return f"--{CONFIG}=NAME is missing; --{name} sets a key of that recipe"
        return f"unknown option --{name}{_did_you_mean(values, name)}"
    if type(error).__name__ == "FlagOrderError":  # ml_collections does not export it.
        return f"--{CONFIG}=NAME must come before the options --{CONFIG}.key=value"
    text = " ".join(str(error).split())
    if match := re.match(r"flag --([^=]+)=", str(error)):
        value = _value_of(match[1], argv)
        reason = str(error)[len(match[0]) + len(value) + 2 :]
        return _wrong_value(values, match[1], value, " ".join(reason.split()))
    if match := re.match(r"Missing value for flag -*(\S+)", text):
        return f"--{match[1]} has no value; write --{match[1]}=VALUE"
    for name, value in _overrides(argv):
        if _kind_of_key(values, name) is None:
            return f"unknown key --{CONFIG}.{name}{_did_you_mean(values, name)}"
        if isinstance(error, TypeError | ValueError):
            return f"--{CONFIG}.{name}={value}: {text}"
    return text


def missing_value(values: flags.FlagValues, argv: list[str]) -> str | None:
    """Return a message about the first option that is followed by another option instead of its
    value, or None if there is none.

    Without this check, absl would take the next option, such as ``--quiet``, as the value.

    Args:
        values: The absl flags of the command.
        argv: The arguments without the program name. Options that set recipe keys are checked only
            after the recipe is loaded, because the recipe determines the types of the keys.
    """
    for argument, after in itertools.pairwise(argv):
        if argument == "--":
            return None
        option, following = OPTION.match(argument), OPTION.match(after)
        if option and following and not option[2] and _takes_value(values, option[1]):
            return f"--{option[1]} has no value, but {after} follows; write --{option[1]}=VALUE"
    return None


def _takes_value(values: flags.FlagValues, name: str) -> bool:
    """Return whether an option is known and requires a value; Boolean options require none."""
    if name.startswith(f"{CONFIG}."):
        return _kind_of_key(values, name.removeprefix(f"{CONFIG}.")) not in (None, bool, ConfigDict)
    return name in values and not values[name].boolean


def nearest_option(values: flags.FlagValues, text: str) -> str:
    """Return a suggestion of the option that an argument resembles, or an empty text."""
    name, equals, value = text.lstrip("-–—").partition("=")
    near = _nearest(values, name.removeprefix(f"{CONFIG}."))
    return f"; did you mean --{near}={value}?" if equals and near else ""


def _value_of(name: str, argv: list[str]) -> str:
    """Return the last value that a command line gives to a flag."""
    for i in reversed(range(len(argv))):
        given, equals, value = argv[i].lstrip("-").partition("=")
        if given == name:
            return value if equals else "".join(argv[i + 1 : i + 2])
    return ""


def _overrides(argv: Iterable[str]) -> list[tuple[str, str]]:
    """Return the recipe keys that are set on a command line, each with its value."""
    matches = (re.match(rf"--?(?:no)?{CONFIG}\.([^=]+)=?(.*)", argument, re.S) for argument in argv)
    return [(match[1], match[2]) for match in matches if match]


def _recipe(values: flags.FlagValues) -> ConfigDict | None:
    """Return the recipe that the command line selects, or None."""
    parser = values[CONFIG].parser if CONFIG in values else None
    return parser.config if isinstance(parser, RecipeParser) else None


def _keys(values: flags.FlagValues) -> list[str]:
    """Return the dotted keys of the selected recipe, or of a shipped recipe if none is selected."""
    parser = values[CONFIG].parser if CONFIG in values else None
    if not isinstance(parser, RecipeParser):
        return []
    config = parser.config or load(names_of(parser.kind)[0], parser.kind)

    def keys(block: ConfigDict, prefix: str) -> Iterator[str]:
        for name, value in block.items():
            if isinstance(value, ConfigDict):
                yield from keys(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    return list(keys(config, ""))


def _kind_of_key(values: flags.FlagValues, name: str) -> type | None:
    """Return the type of a key's value, or None for an unknown key. The type of a block of keys is
    `ConfigDict`."""
    block: Any = _recipe(values)
    *blocks, last = re.sub(r"\[.*?\]", "", name).split(".")
    for part in blocks:
        block = block[part] if isinstance(block, ConfigDict) and part in block else None
    if not isinstance(block, ConfigDict) or RENAMED.get(last, last) not in block:
        return None
    kind = block.get_type(last)
    return ConfigDict if isinstance(kind, type) and issubclass(kind, ConfigDict) else kind


def _wrong_value(values: flags.FlagValues, name: str, value: str, reason: str) -> str:
    """Return a message about an invalid value of an existing flag."""
    option = f"--{name}={value}"
    kind = (
        _kind_of_key(values, name.removeprefix(f"{CONFIG}.")) if name.startswith(CONFIG) else None
    )
    if kind is ConfigDict:
        keys = [f"--{key}" for key in _options(values) if key.startswith(f"{name}.")]
        return f"{option} is a group of keys: set one of them, such as {', '.join(keys[:3])}"
    if kind is tuple:
        return f"{option} is not a tuple; write it in quotes, as in --{name}='(1, 2)'"
    if kind in VALUES:
        return f"{option} is not {VALUES[kind]}"
    parser = values[name].parser if name in values else None
    if isinstance(parser, PathParser | PathListParser):
        return f"--{name}={reason}"
    if isinstance(parser, flags.BooleanParser):
        return f"{option} is not true or false"
    if isinstance(parser, flags.EnumParser):
        near = difflib.get_close_matches(value, parser.enum_values, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{option}: {hint}choose one of {', '.join(parser.enum_values)}"
    if isinstance(parser, flags.IntegerParser | flags.FloatParser):
        return f"{option} is not {parser.syntactic_help}"
    return f"{option}: {reason}"


def _options(values: flags.FlagValues) -> list[str]:
    """Return the names of this command's flags and of the keys of its recipe."""
    own = [name for name in values if not name.startswith(f"{CONFIG}.")]
    return sorted(own) + [f"{CONFIG}.{key}" for key in _keys(values)]


def _nearest(values: flags.FlagValues, name: str) -> str | None:
    """Return the option nearest to a mistyped name, or None."""
    recipe, others = _recipe(values) or ConfigDict(), set[str]()
    if "protocol" in recipe:  # It has a block for each protocol, and three shared blocks.
        blocks = {key for key, value in recipe.items() if isinstance(value, ConfigDict)}
        others = blocks - {recipe.protocol, "data", "mesh", "model"}
    return nearest(name, _options(values), f"{CONFIG}.", others)


def _did_you_mean(values: flags.FlagValues, name: str) -> str:
    near = _nearest(values, name.removeprefix(f"{CONFIG}."))
    return f"; did you mean --{near}?" if near else "; see --help"
