"""The values of settings that are ``auto``, chosen for the devices of a run."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from can_jax.distributed.sharding_rules import splits_state
from can_jax.models.backbones import encoder_size
from can_jax.models.ops import attention_kernel, compiles_as_loop


def device_choices(config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """Return the device-dependent settings that can be ``auto``, with their values on a mesh."""
    model, size = config.model, encoder_size(config.model)
    dtype, head_width = jnp.dtype(model.dtype), size.width // size.heads
    with jax.set_mesh(mesh):
        return {
            "model.scan": compiles_as_loop(model.scan),
            "model.attention": attention_kernel(model.attention, dtype, head_width),
            "mesh.shard_state": splits_state(config),
        }
