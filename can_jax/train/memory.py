"""An estimate of the memory of a train step, without compiling it.

The activations of a transformer's block are about 34 bytes for each of its features and tokens in
16-bit types, and 5 for each attention weight (arXiv 2205.05198, equation 1). The factors by which
the step differs are from one H200: ViT-B/16 with 256 images and ViT-L/16 with 64
(`benchmarks/NOTES.md`). `can_jax.plan` compiles the step instead.
"""

import math

import jax
from flax import nnx
from ml_collections import ConfigDict

from can_jax.models.backbones import decoder_size, encoder_size
from can_jax.models.can import grid_of
from can_jax.models.masking import visible_count
from can_jax.train.losses import heads
from can_jax.train.step import abstract_network

STATE_BYTES = 16  # per parameter: itself, its gradient and two moments, in float32
# Bytes of the step's activations over the formula's, by remat policy.
FACTORS = {"none": 1.55, "dots": 0.7, "dots_no_batch": 0.6, "full": 0.3}
PIXEL_BYTES = 24  # per value of a view: the crop, its augmentation, noise, targets
FIXED = 2**29  # bytes of the program, its libraries and fragmentation


def parameter_count(config: ConfigDict) -> int:
    """Return the number of parameters of a resolved configuration."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract_network(config))))


def step_bytes(config: ConfigDict, parameters: int, devices: int) -> int:
    """Return an estimate of the bytes that a step needs on each device.

    Args:
        config: The resolved configuration.
        parameters: The number of parameters; see `parameter_count`.
        devices: The number of devices, over all of which the batch is split.
    """
    model, data = config.model, config.data
    patches = math.prod(grid_of(config))
    blocks = [(encoder_size(model), visible_count(patches, model.mask_ratio) + 1)]
    if "decoder" in heads(config):
        blocks.append((decoder_size(model), patches + 1))
    width = 2 if model.dtype == "float32" else 1  # the formula is of 16-bit types
    view = sum(
        size.depth * tokens * (34 * size.width + 5 * size.heads * tokens) for size, tokens in blocks
    )
    view = int(view * width * FACTORS[model.remat])
    view += PIXEL_BYTES * math.prod(data.image_size) * data.channels
    images = math.ceil(config.batch_size / devices / config.accumulation.microbatches)
    return constant_bytes(config, parameters) + images * config.augment.views * view


def constant_bytes(config: ConfigDict, parameters: int) -> int:
    """Return the part of `step_bytes` that does not depend on the batch."""
    return STATE_BYTES * parameters // max(config.mesh.fsdp, 1) + FIXED


def gib(size: int | float) -> str:
    """Format a number of bytes in GiB."""
    return f"{size / 2**30:.1f} GiB"
