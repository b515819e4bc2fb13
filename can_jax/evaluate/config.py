"""The table of all configuration keys of an evaluation, and functions that check their values."""

from collections.abc import Collection, Iterator
from typing import Any

from ml_collections import ConfigDict

from can_jax.config.pretrained import FEATURES, INSIDE, encoder_table, resolve_blocks
from can_jax.evaluate.protocols.registry import PROTOCOLS
from can_jax.utils.errors import UserError
from can_jax.utils.settings import Choice, Key, Table, Whole, configuration

# The protocols of the package, and the config blocks that each reads besides its own.
BLOCKS_READ: dict[str, tuple[str, ...]] = {
    "knn": (), "linear": (), "fewshot": (), "health": (), "disentanglement": (),
    "robustness": ("linear",), "classify": ("robustness",),
}  # fmt: skip


def evaluation_table() -> Table:
    """Return the configuration keys of an evaluation: common keys, and the blocks of protocols.

    Raises:
        UserError: A registered protocol has the name of a common configuration key.
    """
    common: dict[str, Any] = {
        "protocol": Key("knn", Choice(PROTOCOLS), "The evaluation protocol."),
        "seed": Key(0, Whole(0, 2**31 - 1), "The random seed of the evaluation."),
        "batch_size": Key(
            256, Whole(1, 2**24), "Images per forward pass; for `classify`, images per train step."
        ),
        "features": Key(
            "patches", Choice(FEATURES),
            "The tokens that are averaged into the feature vector: the class token, the patch "
            "tokens or all tokens; `both` concatenates `class` and `patches`.",
        ),
        "held_out": Key(
            0.1, INSIDE,
            "The fraction of the training examples held out to select hyperparameters."
        ),
        "baselines": Key(
            "auto", Choice(("auto", "on", "off")),
            "Whether `knn` also evaluates the untrained encoder and raw pixels; `auto` does so for "
            "at most 100,000 training and test images in total."
        ),
    }  # fmt: skip
    common |= encoder_table()
    blocks = {name: protocol.settings for name, protocol in PROTOCOLS.items()}
    if taken := common.keys() & blocks:
        raise UserError(
            f"the evaluation protocol {min(taken)!r} has the name of a configuration key: register "
            "it under another name"
        )
    return common | {name: block for name, block in blocks.items() if block}


def default_evaluation() -> ConfigDict:
    """Return the default configuration: kNN on the pretraining data, at the image size of
    pretraining."""
    return configuration(evaluation_table()).lock()


def resolve_evaluation(config: ConfigDict) -> ConfigDict:
    """Return a checked copy of an evaluation's configuration, with sizes and ranges as tuples.

    Raises:
        UserError: A setting is invalid; the one-line message names the first invalid setting.
    """
    origin = "can_jax.evaluate.config.default_evaluation()"
    config = resolve_blocks(config, evaluation_table(), origin)
    for _, protocol in PROTOCOLS.items():
        protocol.check(config)
    return config


def warnings_of(config: ConfigDict, given: Collection[str]) -> Iterator[str]:
    """Yield a warning about each key in ``given`` that does not affect the results of the protocol.

    Nothing is yielded for a protocol from a user's module, which may read any key.

    Args:
        config: The resolved configuration of the evaluation.
        given: The dotted config keys that the command line sets.
    """
    name = config.protocol
    if name not in BLOCKS_READ:
        return
    blocks = {name, *BLOCKS_READ[name]}
    for key in sorted(given):
        block = key.split(".")[0]
        if (block in PROTOCOLS and block not in blocks) or (key == "baselines" and name != "knn"):
            yield f"config.{key} has no effect on the protocol {name}"
        elif key == "features" and "linear" in blocks:
            effect = "affects pictures only" if name == "linear" else "has no effect"
            yield (
                f"config.features {effect}: the linear classifiers of the protocol {name} use the "
                "best of config.linear.features"
            )
