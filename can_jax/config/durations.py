"""Durations that a configuration can state in one of several units, and their values in steps."""

import math
from typing import Any

from ml_collections import ConfigDict

from can_jax.utils.errors import UserError

# The keys of each duration. If an older version stored several keys, the first one takes effect.
DURATIONS = (
    ("total_steps", "total_epochs", "total_examples", "total_minutes"),
    (
        "optimizer.warmup_steps", "optimizer.warmup_epochs", "optimizer.warmup_examples",
        "optimizer.warmup_share",
    ),
    ("probe.every_steps", "probe.every_epochs"),
)  # fmt: skip
TOTAL, WARMUP, PROBE = DURATIONS
MOST_STEPS = 2**31 - 1  # the largest value of the step counters on the device
TIMED_STEPS = 100_000  # virtual steps in the schedule of a run whose length is a time


def value_of(config: ConfigDict, key: str) -> Any:
    """Return the value of a dotted key, or None if the configuration has no such key."""
    *blocks, name = key.split(".")
    for block in blocks:
        config = config.get(block) if isinstance(config, ConfigDict) else None
    return config.get(name) if isinstance(config, ConfigDict) else None


def unset(config: ConfigDict, keys: tuple[str, ...], but: str, prefix: str = "") -> None:
    """Set all keys of a duration to None, except for the key ``but``.

    Args:
        config: The configuration to change in place.
        keys: The keys of the duration, an entry of `DURATIONS`.
        but: The key whose value is retained.
        prefix: The dotted prefix of the recipe's keys, such as ``recipe.``, if the recipe is a
            block of ``config``; empty by default.
    """
    for key in keys:
        if key != but and value_of(config, prefix + key) is not None:
            *blocks, name = (prefix + key).split(".")
            block = config
            for part in blocks:
                block = block[part]
            with block.ignore_type():
                block[name] = None


def keep_first(config: ConfigDict) -> None:
    """Set the keys of each duration to None, except for the first key with a value.

    Older versions used only the first key with a value.
    """
    for keys in DURATIONS:
        set_keys = [key for key in keys if value_of(config, key) is not None]
        if len(set_keys) > 1:
            unset(config, keys, but=set_keys[0])


def keep_only(config: ConfigDict, defaults: ConfigDict) -> None:
    """Set the default key of a duration to None if the recipe sets another key of that duration.

    Args:
        config: The configuration to change in place.
        defaults: The default configuration, before the recipe's changes.

    Raises:
        UserError: A duration is set in several units.
    """
    for keys in DURATIONS:
        set_keys = [key for key in keys if value_of(config, key) is not None]
        chosen = [key for key in set_keys if value_of(config, key) != value_of(defaults, key)]
        if len(chosen) > 1:
            both = " and ".join(f"config.{key}={value_of(config, key)}" for key in chosen[:2])
            raise UserError(f"{both} are both set: set one of them to None")
        if len(set_keys) > 1:
            unset(config, keys, but=(chosen or set_keys)[0])


def keep_overrides(config: ConfigDict, overrides: dict[str, Any], prefix: str = "") -> None:
    """Keep only the key by which the command line sets a duration; set the other keys to None.

    Args:
        config: A recipe to which the overrides have been applied; changed in place.
        overrides: The values from the command line, by dotted key.
        prefix: The dotted prefix of the recipe's keys, such as ``recipe.``, if the recipe is a
            block of ``config``; empty by default.

    Raises:
        UserError: The command line sets several units of one duration.
    """
    for keys in DURATIONS:
        given = [key for key in keys if overrides.get(prefix + key) is not None]
        if len(given) > 1:
            raise UserError(
                f"--config.{prefix}{given[0]} and --config.{prefix}{given[1]} set the same "
                "duration: give one of them"
            )
        if given:
            unset(config, keys, but=given[0], prefix=prefix)


def exact_steps(
    config: ConfigDict, keys: tuple[str, ...], examples: int, total: int = 0
) -> float | None:
    """Return a duration in steps before rounding, or None if none of its keys is set.

    A run with a time limit, ``total_minutes``, counts as `TIMED_STEPS` virtual steps.

    Args:
        config: A checked configuration, in which at most one of ``keys`` is set.
        keys: The keys of the duration, an entry of `DURATIONS`.
        examples: The number of images in an epoch.
        total: The number of steps in the run, required if the duration is a fraction of the run.

    Raises:
        UserError: The duration exceeds `MOST_STEPS`.
    """
    for key in keys:
        value = value_of(config, key)
        if value is None:
            continue
        scale = {
            "steps": 1.0,
            "epochs": examples / config.batch_size,
            "examples": 1 / config.batch_size,
            "share": total,
            "minutes": TIMED_STEPS / value if value else 0.0,
        }[key.rsplit("_", 1)[1]]
        if value * scale > MOST_STEPS:
            raise UserError(
                f"config.{key}={value:,} is {value * scale:,.0f} steps with batch_size="
                f"{config.batch_size}: at most {MOST_STEPS:,} are possible; give a smaller value"
            )
        # A tiny duration could underflow to 0, which would disable the action.
        return max(value * scale, math.ulp(0.0)) if value else 0.0
    return None


def steps_of(config: ConfigDict, keys: tuple[str, ...], examples: int) -> int | None:
    """Return a duration in whole steps, at least 1 if it is above 0; None if it is not set."""
    exact = exact_steps(config, keys, examples)
    if exact is None:
        return None
    return max(1, round(exact)) if exact else 0


def warmup_steps(config: ConfigDict, examples: int, total: int) -> int:
    """Return the number of warm-up steps, which is less than the number of steps in the run.

    Args:
        config: A checked configuration.
        examples: The number of images in an epoch.
        total: The number of steps of the learning-rate schedule.

    Raises:
        UserError: The warm-up is not shorter than the run.
    """
    exact = exact_steps(config, WARMUP, examples, total)
    length = exact_steps(config, TOTAL, examples)
    if exact is None or length is None:
        return 0
    if exact and exact >= max(length, total):
        key = next(key for key in WARMUP if value_of(config, key) is not None)
        raise UserError(
            f"config.{key}={value_of(config, key)} is a warm-up of {exact:,.0f} steps, but the run "
            f"has {total:,} steps: shorten the warm-up, or set config.{WARMUP[-1]} instead"
        )
    return min(round(exact), total - 1)
