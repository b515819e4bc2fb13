"""The analytic FLOPs of a training step."""

import itertools
import math

from ml_collections import ConfigDict

from can_jax.models.can import Size, encoder_size, grid_of
from can_jax.models.masking import visible_count


def transformer_flops(size: Size, tokens: int) -> int:
    """Return the forward FLOPs of all blocks for one row of ``tokens`` tokens.

    With t tokens of width D they are ``depth * (24 t D^2 + 4 t^2 D)``. A multiply-add counts as 2.
    """
    return size.depth * (24 * tokens * size.width**2 + 4 * tokens**2 * size.width)


def train_flops_per_image(config: ConfigDict, heads: frozenset[str]) -> int:
    """Return the FLOPs of a training step per image, all its views included.

    They are 3 times those of the forward pass. All matrix products count, recomputed ones do not.

    Args:
        config: The resolved configuration.
        heads: The heads that are built; see `can_jax.models.can.HEADS`.
    """
    patches = math.prod(grid_of(config))
    visible = visible_count(patches, config.model.mask_ratio)
    pixels = config.model.patch_size**2 * config.data.channels
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
