"""An estimate of the memory of a train step, without compiling it.

In 16-bit types, the activations of a transformer block take about 34 bytes per token and feature,
and 5 bytes per attention weight (arXiv 2205.05198, equation 1); in XLA's programs, 7. `FACTORS`
makes the formula an upper bound of the memory that XLA's compiler for the H100 plans for ViT-S, B
and L at 224 px. `can_jax.plan` compiles the step instead of estimating it.
"""

import math

import jax
from flax import nnx
from ml_collections import ConfigDict

from can_jax.models.flops import transformers
from can_jax.train.losses import heads
from can_jax.train.step import abstract_network

STORED_BYTES = 12  # per parameter: its value and two moments, in float32
PASSING_BYTES = 4  # per parameter: its copy for the computation and its gradient, in 16 bits
# The step's bytes of activations, divided by those of the formula, by remat policy.
FACTORS = {"none": 1.0, "dots": 0.6, "dots_no_batch": 0.6, "full": 0.15}
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
        devices: The number of devices. The batch is split over all of them.
    """
    model, data = config.model, config.data
    width = 2 if model.dtype == "float32" else 1  # the formula is of 16-bit types
    # In 16 bits accelerators compute attention in a kernel that stores no weights.
    weights = 7 if model.attention == "xla" or width == 2 else 0
    view = sum(
        size.depth * tokens * (34 * size.width + weights * size.heads * tokens)
        for size, tokens in transformers(config, heads(config))
    )
    view = int(view * width * FACTORS[model.remat])
    view += PIXEL_BYTES * math.prod(data.image_size) * data.channels
    images = math.ceil(config.batch_size / devices / config.accumulation.microbatches)
    return constant_bytes(config, parameters, devices) + images * config.augment.views * view


def constant_bytes(config: ConfigDict, parameters: int, devices: int) -> int:
    """Return the part of `step_bytes` that does not depend on the batch.

    With ``mesh.shard_state``, the default on accelerators, all devices share what is stored.
    """
    fsdp = max(config.mesh.fsdp, 1)
    shards = devices if config.mesh.shard_state else fsdp
    return STORED_BYTES * parameters // shards + PASSING_BYTES * parameters // fsdp + FIXED


def gib(size: int | float) -> str:
    """Format a number of bytes in GiB."""
    return f"{size / 2**30:.1f} GiB"
