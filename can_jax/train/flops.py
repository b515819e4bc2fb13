"""The number of FLOPs of a training step, computed from the configuration."""

import math

import jax
from flax import nnx
from ml_collections import ConfigDict

from can_jax import objectives
from can_jax.models.backbones import BACKBONES, Size, decoder_size, encoder_size, encoder_width
from can_jax.models.can import (
    HeadBuilder,
    grid_of,
    has_noise_output,
    layer_options,
    pixels_per_patch,
)
from can_jax.models.masking import visible_count
from can_jax.models.variant import variant_of
from can_jax.train.network import heads


def train_flops_per_image(config: ConfigDict) -> int:
    """Return the FLOPs of a training step per image, for all of its views.

    A step counts as three forward passes of the network, plus one of the teacher's encoder if there
    is a teacher. Only matrix products are counted. The matrix products of rematerialization, of
    GradCache's extra forward pass and of the noise-level embedding are left out. Each objective is
    assumed to apply its own head once, to the pooled embedding of each view or to each patch token
    that it reads.

    Args:
        config: The resolved configuration.
    """
    patches = math.prod(grid_of(config))
    visible = visible_count(patches, config.model.mask_ratio)
    pixels = pixels_per_patch(config)
    built = heads(config)
    settings = config.objective.to_dict()
    reads = objectives.reads(settings)
    view = encoder_flops(config)
    if "decoder" in built:
        decoder = decoder_size(config.model)
        outputs = int(has_noise_output(config)) + ("prediction" in reads)
        view += decoder.flops(patches + 1)
        inner = (visible + 1) * encoder_width(config) + outputs * patches * pixels
        view += 2 * decoder.width * inner
    active = objectives.active(settings)
    for name, head in objectives.head_names(settings).items():
        tokens = {"tokens": visible, "decoded": patches}
        vectors = max(tokens.get(field, 1) for field in active[name].reads)
        view += 2 * vectors * sum(kernel_sizes(config, built[head]))
    teacher = BACKBONES.get(config.model.backbone).flops(config, pixels, patches)
    return config.augment.views * (3 * view + ("teacher" in reads) * teacher)


def encoder_flops(config: ConfigDict) -> int:
    """Return the FLOPs of the encoder's forward pass of the visible patches of a view."""
    visible = visible_count(math.prod(grid_of(config)), config.model.mask_ratio)
    backbone = BACKBONES.get(config.model.backbone)
    return backbone.flops(config, pixels_per_patch(config), visible)


def transformers(config: ConfigDict) -> list[tuple[Size, int]]:
    """Return the size and the sequence length of the encoder, if it is a Vision Transformer, and of
    the decoder, if there is one."""
    patches = math.prod(grid_of(config))
    visible = visible_count(patches, config.model.mask_ratio)
    sizes = []
    if config.model.backbone == "vit":
        tokens = visible + 1 + variant_of(config.model).registers
        sizes.append((encoder_size(config.model), tokens))
    if "decoder" in heads(config):
        sizes.append((decoder_size(config.model), patches + 1))
    return sizes


def kernel_sizes(config: ConfigDict, build: HeadBuilder) -> list[int]:
    """Return the number of entries of each 2-D parameter (matrix) of a head."""
    width, options = encoder_width(config), layer_options(config)
    head = nnx.eval_shape(lambda: build(config, width, **options, rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(head, nnx.Param))
    return [math.prod(leaf.shape) for leaf in leaves if leaf.ndim == 2]
