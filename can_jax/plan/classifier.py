"""The plan for training a classifier by fine-tuning or linear probing."""

import math

from ml_collections import ConfigDict

from can_jax.encoders.pretrained import changed
from can_jax.evaluate.protocols.classifier_step import ClassifierStep
from can_jax.evaluate.protocols.finetune import classifier_config
from can_jax.models.backbones import Size, encoder_size
from can_jax.models.can import grid_of
from can_jax.models.variant import variant_of
from can_jax.plan.estimate import Work
from can_jax.utils.errors import UserError


def classifier_work(
    protocol: ConfigDict, encoder: ConfigDict, name: str, classes: int
) -> tuple[ConfigDict, Work]:
    """Return the configuration of a classifier's training, and the `Work` of its train step.

    Args:
        protocol: The resolved configuration of the evaluation.
        encoder: The resolved configuration of the pretraining run.
        name: The name of the pretraining recipe or run, for messages.
        classes: The number of classes.

    Raises:
        UserError: The protocol trains no classifier, or does not fit the encoder.
    """
    if protocol.protocol != "classify":
        raise UserError(
            f"config.protocol={protocol.protocol!r} has no train step to plan; give a --config "
            "that trains a classifier, such as finetune_imagenet_l"
        )
    config = classifier_config(protocol, changed(encoder, protocol), name)

    def step(config: ConfigDict) -> ClassifierStep:
        return ClassifierStep(config, protocol.classify, protocol.features, classes, lambda _: 1e-3)

    def blocks(config: ConfigDict) -> list[tuple[Size, int]]:
        if protocol.classify.freeze_encoder or config.model.backbone != "vit":
            return []
        tokens = math.prod(grid_of(config)) + 1 + variant_of(config.model).registers
        return [(encoder_size(config.model), tokens)]

    return config, Work(step, lambda config: step(config).flops_per_image, blocks)
