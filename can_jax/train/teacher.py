"""The targets of a teacher, which is a moving average of the encoder, for objectives such as
`latents`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from can_jax.distributed.mesh import constrain_batch_sharding
from can_jax.models.can import grid_of

Tree = Any


def teacher_tokens(
    config: ConfigDict,
    network: nnx.GraphDef,
    parameters: Tree,
    batch_stats: Tree,
    clean: Float[Array, "rows patches pixels"],
) -> Float[Array, "rows patches width"]:
    """Return the patch tokens of a teacher for whole views without noise, in row-major order.

    Args:
        config: The resolved configuration.
        network: The `nnx.GraphDef` of the network.
        parameters: The parameters of the network, in which ``encoder`` holds those of the teacher.
        batch_stats: The variables that are not trained: running statistics of BatchNorm, and the
            fixed map of the patch embedding, if any.
        clean: The normalized pixels of all patches of each row, without noise.
    """
    index = jnp.broadcast_to(np.arange(clean.shape[1]), clean.shape[:2])
    patches = constrain_batch_sharding(clean.astype(config.model.dtype))
    encoder = nnx.merge(network, parameters, batch_stats, copy=True).encoder
    return encoder(patches, index, grid_of(config))[:, 1:]
