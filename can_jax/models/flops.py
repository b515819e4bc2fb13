"""Analytic FLOPs of a training step."""

import itertools

from ml_collections import ConfigDict

from can_jax.models.can import Size, encoder_size
from can_jax.models.masking import visible_count


def transformer_flops(size: Size, tokens: int) -> int:
    """Forward FLOPs of the blocks over one row: ``depth * (24 t D^2 + 4 t^2 D)``, 2 a
    multiply-add."""
    return size.depth * (24 * tokens * size.width**2 + 4 * tokens**2 * size.width)


def train_flops_per_image(config: ConfigDict, heads: frozenset[str]) -> int:
    """FLOPs of a training step for one image, all its views: 3 times the forward pass.

    All matrix products are counted, whatever `model.remat` computes again is not.
    """
    (height, width), patch = config.data.image_size, config.model.patch_size
    patches = (height // patch) * (width // patch)
    visible = visible_count(patches, config.model.mask_ratio)
    pixels = patch**2 * config.data.channels
    encoder = encoder_size(config.model)
    view = transformer_flops(encoder, visible + 1) + 2 * visible * pixels * encoder.width
    if "prediction" in heads:
        decoder = Size(**config.model.decoder)
        view += transformer_flops(decoder, patches + 1)
        view += 2 * decoder.width * ((visible + 1) * encoder.width + patches * pixels)
    if "projection" in heads:
        layers, hidden = config.model.projector.layers, config.model.projector.hidden
        widths = [encoder.width, *[hidden] * (layers - 1), config.model.projector.outputs]
        view += 2 * sum(inputs * outputs for inputs, outputs in itertools.pairwise(widths))
    return 3 * config.augment.views * view
