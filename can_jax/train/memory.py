"""An estimate of the device memory that a train step needs, made without compiling the step.

In 16-bit types, the activations of a transformer block take about 34 bytes per token and feature,
and 5 bytes per entry of the attention matrices (arXiv 2205.05198, equation 1). Programs compiled by
XLA take 7 bytes instead of 5 per entry of the attention matrices. `FACTORS` were chosen so that the
estimate is an upper bound for ViT-S, B and L at 224 px, as compiled by XLA for an H100.
`can_jax.plan` compiles the step and reports the memory that the compiler assigns.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from can_jax.train.flops import transformers
from can_jax.train.network import abstract_network

STORED_BYTES = 12  # per parameter: its value and two moments, in float32
AVERAGE_BYTES = 4  # per parameter: its moving average, with `optimizer.ema_decay`
PASSING_BYTES = 4  # per parameter: its copy for the computation and its gradient, in 16 bits
SUMMED_BYTES = 4  # per parameter: the sum of the gradients of microbatches, in float32
# For each remat policy, the activation bytes of a step divided by those of the formula.
FACTORS = {"none": 1.0, "dots": 0.6, "dots_no_batch": 0.6, "full": 0.15}
PIXEL_BYTES = 24  # per value of a view: the crop, its augmentation, noise, targets
FIXED = 2**29  # bytes of the program, its libraries and fragmentation


def parameter_count(config: ConfigDict) -> int:
    """Return the number of parameters of the network of a resolved configuration."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract_network(config))))


def can_estimate(config: ConfigDict) -> bool:
    """Return whether `step_bytes` can estimate the activations of the backbone."""
    return config.model.backbone == "vit"


def step_bytes(config: ConfigDict, parameters: int, devices: int) -> int:
    """Estimate the memory in bytes that a train step needs on each device.

    Args:
        config: The resolved configuration, for which `can_estimate` is True.
        parameters: The number of parameters of the network; see `parameter_count`.
        devices: The number of devices, over which the batch is split.
    """
    model, data = config.model, config.data
    scale = jnp.dtype(model.dtype).itemsize / 2  # relative to the 16-bit types of the formula
    # In 16 bits, accelerators compute attention in a kernel that stores no attention matrices.
    per_entry = 7 if model.attention == "xla" or scale > 1 else 0
    view = sum(
        size.depth * tokens * (34 * size.width + per_entry * size.heads * tokens)
        for size, tokens in transformers(config)
    )
    view = int(view * scale * FACTORS[model.remat])
    view += PIXEL_BYTES * math.prod(data.image_size) * data.channels
    images = math.ceil(config.batch_size / devices / config.accumulation.microbatches)
    return constant_bytes(config, parameters, devices) + images * config.augment.views * view


def constant_bytes(config: ConfigDict, parameters: int, devices: int) -> int:
    """Estimate the part of `step_bytes` that does not depend on the batch size.

    With ``mesh.shard_state``, the default on accelerators, the stored parameters and optimizer
    state are sharded over all devices.
    """
    fsdp = max(config.mesh.fsdp, 1)
    shards = devices if config.mesh.shard_state else fsdp
    stored = STORED_BYTES + (AVERAGE_BYTES if config.optimizer.ema_decay else 0)
    passing = PASSING_BYTES + (SUMMED_BYTES if config.accumulation.microbatches > 1 else 0)
    return stored * parameters // shards + passing * parameters // fsdp + FIXED


def gib(size: int | float) -> str:
    """Convert a size in bytes to text in GiB, such as ``12.3 GiB``."""
    return f"{size / 2**30:.1f} GiB"
