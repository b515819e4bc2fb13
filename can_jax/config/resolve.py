"""Functions that create, check and resolve configurations, and convert them to and from JSON."""

import json
import runpy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from can_jax.config.defaults import DATA, RECIPE, SIZE
from can_jax.config.durations import keep_first, keep_only, value_of
from can_jax.config.image_settings import check_range
from can_jax.config.shipped import find
from can_jax.config.validate import CHECKS, check_encoder
from can_jax.data.decoding.depth import Range
from can_jax.utils.errors import UserError
from can_jax.utils.files import expand_home
from can_jax.utils.nested import flatten
from can_jax.utils.renamed import with_new_names
from can_jax.utils.settings import AS_DEFAULT, Table, check_table, configuration, flat_keys, refuse

# The keys that determine a pretrained encoder and its input.
ENCODER = (
    "data.image_size", "data.channels", "augment.mean", "augment.std", "model.backbone",
    "model.backbone_options", "model.size", "model.width", "model.depth", "model.heads",
    "model.patch_size", "model.patch_embed", "model.dtype", "model.residual_dtype", "model.scan",
    "model.remat", "model.attention",
)  # fmt: skip


def default_config() -> ConfigDict:
    """Return the default configuration, CAN with ViT-B/16, for recipes to change.

    The defaults follow the paper, except for the denoising branch; see docs/method.md.
    `can_jax.config.defaults` describes every key. A recipe sets each duration in one unit. For
    example, `total_steps`, `total_epochs`, `total_examples` or `total_minutes` sets the length of
    the run. Required keys may be None until `resolve` checks the configuration.
    """
    return configuration(RECIPE).lock()


def load_recipe(beside: str, name: str) -> ConfigDict:
    """Return the configuration of another recipe, which the calling recipe then changes.

    Args:
        beside: The path of the calling recipe, usually ``__file__``.
        name: The name, without suffix, of a file in ``beside``'s folder, or of a shipped recipe.
    """
    path = Path(beside).parent / f"{name}.py"
    if not path.is_file():
        path = find(name, "recipe", f"load_recipe({name!r}) of {beside}")
    return runpy.run_path(str(path))["get_config"]()


def resolve(config: ConfigDict) -> ConfigDict:
    """Return a checked copy of a recipe's configuration.

    In the copy, ``data.image_size`` is (height, width), and each duration is set in at most one
    unit.

    Raises:
        UserError: A setting is invalid; the one-line message names the first invalid setting.
    """
    check_table(config, RECIPE, "can_jax.config.default_config()")
    config = expand_paths(config)
    keep_only(config, default_config())
    with config.ignore_type():
        config.data.image_size = as_size(config.data.image_size)
        config.data.range = as_range(config.data.range)
    for check in CHECKS:
        check(config)
    return config


def resolve_encoder(config: ConfigDict) -> ConfigDict:
    """Check the encoder settings of a stored configuration, and return a resolved copy.

    Settings that only training uses are not checked, because older versions accepted values that
    are rejected now.

    Raises:
        UserError: A setting of the encoder is invalid; the message names the first invalid one.
    """
    check_keys(config, ENCODER)
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.data.image_size = as_size(config.data.image_size)
        if DATA["range"].accepts(config.data.range):
            config.data.range = as_range(config.data.range)
    check_encoder(config)
    return config


def check_keys(config: ConfigDict, names: Collection[str]) -> None:
    """Check the values of the keys in ``names``, and of all keys in the blocks in ``names``.

    Args:
        config: The configuration of a recipe.
        names: The dotted names of the keys and blocks.

    Raises:
        UserError: A key has a value that is not allowed.
    """
    for name, key in flat_keys(RECIPE):
        if within(name, names):
            refuse(name, value_of(config, name), key)


def without_refused(config: ConfigDict, but: Collection[str]) -> tuple[ConfigDict, list[str]]:
    """Return a copy of a stored configuration in which rejected values are replaced by defaults.

    Args:
        config: The stored configuration of a run, possibly written by an older version of the
            program.
        but: The dotted keys and blocks whose values are not replaced.

    Returns:
        The copy of ``config``, and a sentence for each replaced value.
    """
    config, lines = config.copy_and_resolve_references(), []
    for name, key in flat_keys(RECIPE):
        value = value_of(config, name)
        if within(name, but) or key.accepts(value):
            continue
        with config.unlocked(), config.ignore_type():
            config.update_from_flattened_dict({name: key.default})
        lines.append(f"config.{name}={value} is no longer allowed; {key.default} is used instead")
    return config, lines


def within(name: str, names: Collection[str]) -> bool:
    """Return whether a dotted key is one of ``names``, or belongs to a block in ``names``."""
    return name in names or any(name.startswith(f"{block}.") for block in names)


def expand_paths(config: ConfigDict) -> ConfigDict:
    """Return a copy of a configuration in which a leading ``~`` of each string is replaced by the
    home directory.

    Every string that begins with ``~`` is assumed to be a path. Strings inside tuples and dicts,
    such as those of ``data.mixture``, are expanded, too.

    Raises:
        UserError: The ``~`` of a path cannot be expanded, because the user is unknown or HOME is
            not set; the message names the key.
    """

    def expanded(value: Any, key: str) -> Any:
        if isinstance(value, str):
            try:
                return expand_home(value)
            except UserError as error:
                raise UserError(f"{key}={error}") from None
        if isinstance(value, dict):
            return {name: expanded(v, f"{key}: {name}") for name, v in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(expanded(v, key) for v in value)
        return value

    def visit(block: ConfigDict, prefix: str) -> None:
        for name, value in block.items():
            if isinstance(value, ConfigDict):
                visit(value, f"{prefix}{name}.")
            elif (replaced := expanded(value, prefix + name)) != value:
                block[name] = replaced

    config = config.copy_and_resolve_references()
    visit(config, "config.")
    return config


def as_size(value: Any) -> tuple[int, int]:
    """Return an image size, given as an int or a pair, as (height, width).

    Raises:
        UserError: The value is not a valid image size.
    """
    refuse("data.image_size", value, SIZE)
    sides = tuple(value) if isinstance(value, tuple | list) else (value,)
    return sides[0], sides[-1]


def as_range(value: Any) -> Range:
    """Return a value of `data.range` as a pair of floats, or None.

    Raises:
        UserError: The value is not a valid range of pixel values.
    """
    refuse("data.range", value, DATA["range"])
    return check_range(value)


def to_json(config: ConfigDict) -> str:
    """Return the configuration as JSON, with sorted keys; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> ConfigDict:
    """Parse a configuration from JSON text that this or an older version of can_jax wrote.

    Keys that an older version did not have get values that reproduce the behavior of that version.

    Raises:
        UserError: The JSON value is not a configuration, or has a key that this version does not
            have.
        ValueError: The text is not valid JSON.
    """
    values = with_new_names(json.loads(text))
    if not isinstance(values, dict):
        raise UserError(f"the JSON text contains a {type(values).__name__}, not a configuration")
    config = default_config()

    def fill(block: ConfigDict, values: dict[str, Any], table: Table, prefix: str) -> None:
        for key, value in values.items():
            if key not in table:
                raise UserError(
                    f"config.{prefix}{key} is not a key of this version of can_jax; if a module of "
                    "yours registers it, import that module with --modules=FILE"
                )
            is_block = isinstance(table[key], Mapping)
            if is_block != isinstance(value, dict):
                expected = "a block of keys" if is_block else "a single value"
                raise UserError(
                    f"config.{prefix}{key}={value!r}: this version of can_jax expects {expected} "
                    "here"
                )
            if isinstance(value, dict):
                fill(block[key], value, table[key], f"{prefix}{key}.")
            else:
                with block.ignore_type():
                    block[key] = _tuples(value)

    config.update_from_flattened_dict(values_before(values))
    fill(config, values, RECIPE, "")
    keep_first(config)
    return config


def values_before(stored: dict[str, Any]) -> dict[str, Any]:
    """Return a value for each key that a stored configuration lacks, if the key's current default
    would change the run.

    The values reproduce the behavior of the version that stored the configuration; see
    `can_jax.utils.settings.Key`.
    """
    present = flatten(stored)
    return {
        name: key.before
        for name, key in flat_keys(RECIPE)
        if name not in present and key.before is not AS_DEFAULT
    }


def _tuples(value: Any) -> Any:
    """Convert JSON lists to tuples, recursively."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
