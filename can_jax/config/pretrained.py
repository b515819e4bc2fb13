"""The configuration keys that select the encoder, the data and the devices of an evaluation, and
checks of these keys.

`can_jax.evaluate.config` adds the keys of the evaluation protocols to the keys of this module.
`can_jax.load` uses only the keys of this module.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from can_jax.config.defaults import DATA, HEADS, MESH, MODEL
from can_jax.config.kinds import COUNT
from can_jax.config.resolve import as_range, as_size, expand_paths
from can_jax.config.validate import check, check_data
from can_jax.models.can import POOLS
from can_jax.models.variant import OPTIONS as VIT_OPTIONS
from can_jax.utils.settings import (
    Key,
    Number,
    Several,
    Special,
    Switch,
    Table,
    Text,
    check_table,
    flat_keys,
)

FEATURES = (*POOLS, "both")
INSIDE = Number(above=0, below=1)
# The keys of the block `data` that have an effect even if the evaluation reads the run's data set.
OF_ANY_DATA = ("source", "image_size", "test_split", "held_out", "train_examples", "test_examples")


def _per_channel(kind: Number) -> Special:
    """Return the type of a key whose value is one number, or one number per channel."""
    each = Several(kind, empty=False)
    words = f"{kind.describe()}, or one for each channel, for pixel values in [0, 1]"
    return Special(words, lambda value: kind.accepts(value) or each.accepts(value))


def encoder_table() -> Table:
    """Return the table of the keys in the config blocks `data`, `mesh` and `model` of an
    evaluation."""
    return {
        # By default, the whole block is that of the run.
        "data": {
            **DATA,
            "source": dataclasses.replace(DATA["source"], default=None),
            "image_size": dataclasses.replace(DATA["image_size"], required=False),
            "test_split": Key(
                None, Text(),
                "The split to test on; by default the first of these with labels: "
                "config.probe.split of the run, `test`, `val`.",
            ),
            "held_out": Key(
                None, INSIDE,
                "The fraction of the training examples to hold out if no test split can be used. "
                "By default, it is config.probe.held_out of the run.",
            ),
            "train_examples": Key(
                None, COUNT,
                "The maximum number of training examples, taken at even intervals; by default all.",
            ),
            "test_examples": Key(None, COUNT,
            "The maximum number of test examples, taken at even intervals; by default all."),
        },
        "mesh": MESH,
        # Settings that a weights file may lack; by default those of the file or of its library.
        "model": {
            "heads": Key(None, HEADS, "The number of attention heads of the encoder."),
            "gelu": Key(None, VIT_OPTIONS["gelu"].kind,
            "The form of the GELU activation of the encoder."),
            "mean": Key(None, _per_channel(Number(0, 1)),
            "The mean with which images are normalized."),
            "std": Key(None, _per_channel(Number(1e-3, 1)),
            "The standard deviation with which images are normalized."),
            "dtype": Key(None, MODEL["dtype"].kind, "The dtype of the activations."),
            "average": Key(
                True, Switch(),
                "Whether to evaluate the moving average of a run's parameters if the run has one.",
            ),
        },
    }  # fmt: skip


def resolve_blocks(config: ConfigDict, table: Table, origin: str) -> ConfigDict:
    """Return a checked copy of a configuration that has the blocks of `encoder_table`.

    Args:
        config: The configuration.
        table: The table of all keys of the configuration.
        origin: The name of the function that returns the defaults, for error messages.

    Raises:
        UserError: A setting is invalid; the one-line message names the first invalid setting.
    """
    check_table(config, table, origin)
    config = expand_paths(config)
    with config.ignore_type():
        config.data.range = as_range(config.data.range)
        if config.data.image_size is not None:
            config.data.image_size = as_size(config.data.image_size)
    check_evaluation_data(config, table["data"])
    return config


def check_evaluation_data(config: ConfigDict, table: dict[str, Any]) -> None:
    """Check the config block `data` of an evaluation, and reject settings that have no effect.

    Args:
        config: The configuration of an evaluation.
        table: The table of the keys of the block `data`.
    """
    data = config.data
    if data.source is None:
        for name, key in flat_keys(table):
            check(
                name in OF_ANY_DATA or data[name] == key.default,
                f"data.{name}={data[name]} has no effect, since the evaluation uses the data "
                "set of the run; to use another, set config.data.source or --data=PATH",
            )
        return
    check_data(config)
    check(
        not data.streaming,
        "data.streaming=True: an evaluation needs random access; set data.streaming=False",
    )
    for name in ("mean", "std"):
        value = config.model[name]
        check(
            not isinstance(value, tuple | list) or len(value) == data.channels,
            f"model.{name}={value}: with data.channels={data.channels}, give one number, or "
            f"{data.channels} numbers, one for each channel",
        )
