"""The number of FLOPs of a training step, computed from the configuration."""

import math
from collections.abc import Mapping

import jax
from flax import nnx
from ml_collections import ConfigDict

from can_jax.models.backbones import BACKBONES, Size, decoder_size, encoder_size, encoder_width
from can_jax.models.can import (
    BUILDERS,
    HeadBuilder,
    grid_of,
    has_noise_output,
    layer_options,
    pixels_per_patch,
)
from can_jax.models.masking import visible_count
from can_jax.train.losses import heads


def train_flops_per_image(config: ConfigDict) -> int:
    """Return the FLOPs of a training step per image, all its views included.

    The count is 3 times that of the forward pass. The count includes matrix products, except those
    of rematerialization and of the noise-level embedding. It assumes that each objective applies
    its own heads once to the pooled embedding of each view.

    Args:
        config: The resolved configuration.
    """
    patches = math.prod(grid_of(config))
    visible = visible_count(patches, config.model.mask_ratio)
    pixels = pixels_per_patch(config)
    built = heads(config)
    view = BACKBONES.get(config.model.backbone).flops(config, pixels, visible)
    if "decoder" in built:
        decoder, outputs = decoder_size(config.model), 2 if has_noise_output(config) else 1
        view += decoder.flops(patches + 1)
        inner = (visible + 1) * encoder_width(config) + outputs * patches * pixels
        view += 2 * decoder.width * inner
    owned = {name: build for name, build in built.items() if name not in BUILDERS}
    view += 2 * sum(kernel_sizes(config, owned))
    return 3 * config.augment.views * view


def transformers(config: ConfigDict) -> list[tuple[Size, int]]:
    """Return the size and the tokens of a row of the encoder, and of the decoder if it is built.

    Args:
        config: The resolved configuration of a Vision Transformer.
    """
    patches = math.prod(grid_of(config))
    found = [(encoder_size(config.model), visible_count(patches, config.model.mask_ratio) + 1)]
    if "decoder" in heads(config):
        found.append((decoder_size(config.model), patches + 1))
    return found


def kernel_sizes(config: ConfigDict, builders: Mapping[str, HeadBuilder]) -> list[int]:
    """Return the number of entries of each 2-D parameter of some heads."""
    width, options = encoder_width(config), layer_options(config)

    def build() -> nnx.Dict:
        rngs = nnx.Rngs(0)
        return nnx.Dict(
            {name: build(config, width, **options, rngs=rngs) for name, build in builders.items()}
        )

    leaves = jax.tree.leaves(nnx.state(nnx.eval_shape(build), nnx.Param))
    return [math.prod(leaf.shape) for leaf in leaves if leaf.ndim == 2]
