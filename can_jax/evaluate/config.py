"""The table of all configuration keys of an evaluation, and functions that check their values."""

from collections.abc import Collection, Iterator
from typing import Any

from ml_collections import ConfigDict

from can_jax.config.pretrained import FEATURES, INSIDE, encoder_table, resolve_blocks
from can_jax.evaluate.protocols.registry import PROTOCOLS
from can_jax.utils.errors import UserError
from can_jax.utils.settings import Choice, Key, Table, Whole, configuration

# The blocks and keys of the configuration that each protocol of the package reads, besides the keys
# that all protocols read.
KEYS_READ: dict[str, tuple[str, ...]] = {
    "knn": ("knn", "features", "held_out", "baselines"),
    "linear": ("linear", "held_out"),
    "fewshot": ("fewshot", "features"),
    "health": ("health", "features"),
    "disentanglement": ("disentanglement", "features"),
    "robustness": ("robustness", "linear", "held_out"),
    "classify": ("classify", "robustness.bins", "features"),
}
OF_SOME = ("features", "held_out", "baselines")  # keys that only some protocols read
# Keys that are not read if a trained classifier is evaluated.
OF_ENCODERS = ("linear", "held_out", "features", "data.held_out", "data.train_examples")


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
            "Whether `knn` also evaluates the untrained encoder and raw pixels; `auto` does so "
            "unless training and test images together exceed 100,000."
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


def warnings_of(
    config: ConfigDict, given: Collection[str], classifier: bool = False
) -> Iterator[str]:
    """Yield a warning about each key in ``given`` that does not affect the results of the protocol.

    Nothing is yielded for a protocol from a user's module, which may read any key.

    Args:
        config: The resolved configuration of the evaluation.
        given: The dotted config keys that the command line sets.
        classifier: Whether a trained classifier is evaluated instead of an encoder.
    """
    name = config.protocol
    if name not in KEYS_READ:
        return
    evaluated = f"the protocol {name}" + (" with a trained classifier" if classifier else "")
    for key in sorted(given):
        names = {key, key.split(".")[0]}
        ignored = bool(names & {*PROTOCOLS, *OF_SOME} and not names & {*KEYS_READ[name]})
        if classifier:
            ignored = ignored or bool(names & {*OF_ENCODERS})
        if key == "features" and "linear" in KEYS_READ[name] and not classifier:
            effect = "affects pictures only" if name == "linear" else "has no effect"
            yield (
                f"config.features {effect}: the linear classifiers of the protocol {name} use the "
                "best of config.linear.features"
            )
        elif ignored:
            hint = ""
            if key == "held_out" and name != "health" and not classifier:
                hint = "; config.data.held_out is the fraction to hold out for testing"
            yield f"config.{key} has no effect on {evaluated}{hint}"
        elif key == "classify.layer_decay" and config.classify.freeze_encoder:
            yield f"config.{key} has no effect with config.classify.freeze_encoder=True"
        elif key == "classify.beta2" and config.classify.optimizer == "lars":
            yield f"config.{key} has no effect with config.classify.optimizer=lars"
