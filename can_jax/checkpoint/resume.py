"""Compatibility of a resumed run with its stored configuration and checkpoint.

A run directory stores the configuration of its run. If a newer version of the program adds a config
key, a resumed run keeps the old behavior until the command line sets that key.
"""

import json
from collections.abc import Collection
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from can_jax.config.defaults import RECIPE
from can_jax.config.durations import DURATIONS, value_of
from can_jax.config.resolve import from_json, to_json, within
from can_jax.data.fingerprint import differences
from can_jax.models.patch_embed import embedding_kind
from can_jax.utils.errors import UserError
from can_jax.utils.nested import flatten
from can_jax.utils.renamed import with_new_names
from can_jax.utils.settings import flat_keys

# Settings that a resume may change only with --allow_changes=NAME. Other settings, such as the mesh
# or the microbatches, may change freely.
CHANGES = {
    "seed": ("seed",),
    "batch_size": ("batch_size",),
    "data": (
        "data.source", "data.name", "data.split", "data.streaming", "data.window",
        "data.shards_at_once", "data.image_key", "data.options",
    ),
}  # fmt: skip


def with_stored(
    config: ConfigDict, stored: str, given: Collection[str] = ()
) -> tuple[ConfigDict, list[str]]:
    """Return the configuration with which a run resumes under a newer version of the program.

    A key that the stored configuration lacks gets the value that keeps the old behavior. If the
    stored value of a key was the default of an older version, and ``config`` has the current
    default, the key keeps its stored value. All other keys have the values of ``config``.

    Args:
        config: The resolved configuration of the resumed run.
        stored: The configuration in the run directory, as JSON text.
        given: The dotted keys that the command line sets; their values in ``config`` are kept.

    Returns:
        A changed copy of ``config``, and a message for each changed setting.
    """
    config = config.copy_and_resolve_references()
    began = from_json(stored)
    kept: list[str] = []
    for name in [*newer_keys(stored), *redefined_keys(began, config)]:
        # All units of a duration are one setting.
        together = next((keys for keys in DURATIONS if name in keys), (name,))
        differs = value_of(began, name) != value_of(config, name)
        if not differs or any(is_given(key, given) for key in together):
            continue
        old, new = ({key: value_of(of, key) for key in together} for of in (began, config))
        with config.ignore_type():
            config.update_from_flattened_dict(old)
        kept.append(
            f"{_assignment(old, name)}, the value at the start of this run, is used instead of "
            f"{_assignment(new, name)}; to change it, give --{_assignment(new, name)}"
        )
    return config, kept


def check_changes(config: ConfigDict, stored: str, allowed: Collection[str] = ()) -> None:
    """Check that a resumed run keeps its seed, batch size, data settings and patch embedding.

    Args:
        config: The resolved configuration of the resumed run.
        stored: The configuration in the run directory, as JSON text.
        allowed: The names of the settings that may differ: ``seed``, ``batch_size`` or ``data``.

    Raises:
        UserError: A setting differs, and ``allowed`` does not name it, or the patch embedding
            differs.
    """
    began = from_json(stored)
    before, now = embedding_kind(began), embedding_kind(config)
    if before != now:
        raise UserError(
            f"config.model.patch_embed is {now} now, but this run was trained with {before}, whose "
            f"map is part of the checkpoints: give --config.model.patch_embed={before}, or another "
            "--workdir"
        )
    for name, keys in CHANGES.items():
        if name in allowed:
            continue
        for key in keys:
            old, new = value_of(began, key), value_of(config, key)
            if old != new:
                raise UserError(
                    f"config.{key}={new}, but this run was trained with {old}. Give {old}, "
                    f"another --workdir, or --allow_changes={name} to continue with the change"
                )


def check_stream(
    stored: dict[str, Any], current: dict[str, Any], step: int, allowed: Collection[str] = ()
) -> None:
    """Check that a resumed run uses the seed, batch size and data of its checkpoint. Warn of the
    consequences of an allowed change of the batch size.

    Args:
        stored: The ``seed``, the ``batch_size`` and the data fingerprint ``data`` in the
            checkpoint; an empty dict if an older version of the program wrote the checkpoint.
        current: The ``seed``, the ``batch_size`` and the data fingerprint ``data`` of the resumed
            run.
        step: The step of the checkpoint, for messages.
        allowed: The names of the settings that may differ: ``seed``, ``batch_size`` or ``data``.

    Raises:
        UserError: The seed, the batch size or the data differs, and ``allowed`` does not name it.
    """
    for name in CHANGES:
        if name not in stored:
            continue
        old, new = stored[name], current[name]
        if name in allowed:
            if name == "batch_size" and old != new:
                logging.warning(
                    "config.batch_size was %d until step %d and is %d now: the epoch, the number "
                    "of examples, the data position and a length in epochs or images are "
                    "recomputed with it",
                    old, step, new,
                )  # fmt: skip
            continue
        if name == "data" and (phrases := differences(old, new)):
            raise UserError(
                f"config.data differs from the data of the checkpoint of step {step}: it has "
                f"{', '.join(phrases)}. Give the original data, another --workdir, "
                "or --allow_changes=data to continue with the change"
            )
        if name != "data" and old != new:
            raise UserError(
                f"config.{name}={new}, but the checkpoint of step {step} was trained with {old}. "
                f"Give {old}, another --workdir, or --allow_changes={name} to continue with the "
                "change"
            )


def newer_keys(stored: str) -> list[str]:
    """Return the dotted config keys that a stored configuration lacks."""
    stored_keys = flatten(with_new_names(json.loads(stored)))
    return [name for name, _ in flat_keys(RECIPE) if name not in stored_keys]


def redefined_keys(began: ConfigDict, config: ConfigDict) -> list[str]:
    """Return the keys that have the default of an older version in ``began``, and the current
    default in ``config``.

    Args:
        began: The configuration in the run directory, parsed.
        config: The resolved configuration of the resumed run.
    """
    return [
        name
        for name, key in flat_keys(RECIPE)
        if key.was_default
        and value_of(began, name) == key.before
        and value_of(config, name) == key.default
    ]


def is_given(key: str, given: Collection[str]) -> bool:
    """Return whether the command line sets a key, an element of its value, or a block that contains
    the key.

    Args:
        key: The dotted key, such as ``augment.crop_area``.
        given: The dotted keys that the command line sets. A given key can also be an element, such
            as ``augment.crop_area[0]``, or a block, such as ``augment``.
    """
    return within(key, {name.split("[")[0] for name in given})


def to_store(config: ConfigDict, stored: str | None) -> str:
    """Return the JSON text of a configuration, to be stored in a run directory.

    A key that ``stored`` lacks is omitted if its value keeps the old behavior. At the next resume,
    `with_stored` gives each omitted key the value that keeps the old behavior.

    Args:
        config: The resolved configuration of the run.
        stored: The configuration in the run directory, as JSON text; None for a new run.
    """
    values = json.loads(to_json(config))
    if stored is not None:
        began = from_json(stored)
        for name in newer_keys(stored):
            if value_of(began, name) == value_of(config, name):
                *blocks, last = name.split(".")
                block = values
                for part in blocks:
                    block = block[part]
                del block[last]
    return json.dumps(values, indent=2, sort_keys=True)


def _assignment(values: dict[str, Any], name: str) -> str:
    """Format a setting as ``config.KEY=VALUE``. A duration has several keys; KEY is the key that
    has a value."""
    given = {key: value for key, value in values.items() if value is not None}
    key, value = next(iter(given.items()), (name, None))
    return f"config.{key}={value}"
