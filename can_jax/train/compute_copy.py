"""A copy of the parameters in the compute dtype, with respect to which a train step differentiates.

By default, each layer casts its parameters to its compute dtype when it uses them. A train step
instead casts the parameters of all linear layers once, before it differentiates. With a 16-bit
compute dtype, transformer blocks read half as many bytes as with float32. The gradients of the
blocks are stacked and summed over devices in 16 bits, too. Parameters that are sharded over all
devices (`config.mesh.shard_state`, ZeRO, arXiv 1910.02054) are also gathered in the compute dtype.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from can_jax.distributed.sharding_rules import constrain_parameters, path_name, splits_state

Tree = Any
STACKED = "blocks/layers/"  # in the paths of parameters with a layer axis


def compute_copy(config: ConfigDict, parameters: Tree, types: Mapping[str, Any]) -> Tree:
    """Cast parameters to narrower compute dtypes, and gather them along the mesh axis `data`.

    The stored parameters are split along the axis `data` only if `splits_state` returns True.
    Without microbatches, the stacked parameters of the transformer blocks stay sharded, and each
    block gathers its own parameters.

    Args:
        config: The resolved configuration.
        parameters: The parameters of the network, as a nested dict.
        types: The dtypes from `compute_types`, by parameter path. Parameters that are not in
            ``types`` are not cast.
    """

    def cast(path: tuple[Any, ...], parameter: jax.Array) -> jax.Array:
        dtype = types.get(path_name(path), parameter.dtype)
        narrower = jnp.finfo(dtype).bits < jnp.finfo(parameter.dtype).bits
        return parameter.astype(dtype) if narrower else parameter

    copied = jax.tree_util.tree_map_with_path(cast, parameters)
    if not splits_state(config):
        return copied
    gathered = constrain_parameters(copied)
    if config.accumulation.microbatches > 1:
        return gathered  # gathered once for all microbatches
    # `can_jax.models.vit` gathers each block while the devices compute earlier blocks.
    return jax.tree_util.tree_map_with_path(
        lambda path, a, b: a if STACKED in path_name(path) else b, copied, gathered
    )


def stored_gradients(config: ConfigDict, gradients: Tree, parameters: Tree) -> Tree:
    """Cast and reshard the gradients of the compute copy to match the stored parameters.

    Args:
        config: The resolved configuration.
        gradients: The gradients with respect to the result of `compute_copy`.
        parameters: The stored parameters, from which the dtypes are taken.
    """
    if splits_state(config):
        gradients = constrain_parameters(gradients, over_data=True)
    return jax.tree.map(lambda a, b: a.astype(b.dtype), gradients, parameters)


def compute_types(model: nnx.Module) -> dict[str, Any]:
    """Return the compute dtype of each linear layer, by the paths of its parameters.

    The result omits layers that are not linear, such as LayerNorm, whose parameters are not cast.
    """
    return {
        "/".join(map(str, (*path, name))): module.dtype
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.Linear | nnx.LinearGeneral) and module.dtype is not None
        for name in ("kernel", "bias")
    }
