"""The copy of the parameters that a step computes with: cast once, and gathered once.

A layer casts its parameters to its type of computation where it uses them. A step casts the
parameters of all layers at once, before it differentiates. Blocks then read half the bytes, their
gradients are stacked and summed over the devices in the type of computation. Parameters that are
split over all devices (`config.mesh.shard_state`, ZeRO of arXiv 1910.02054) are gathered in that
type.
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
    """Return the parameters in the types in which their layers compute, gathered from all devices.

    Args:
        config: The resolved configuration.
        parameters: The network's parameters.
        types: The types by the paths of parameters, from `compute_types`; parameters without a type
            are not cast.
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
        return gathered  # Once for all microbatches.
    # Each block of `can_jax.models.vit` is gathered beside the computation of earlier ones.
    return jax.tree_util.tree_map_with_path(
        lambda path, a, b: a if STACKED in path_name(path) else b, copied, gathered
    )


def stored_gradients(config: ConfigDict, gradients: Tree, parameters: Tree) -> Tree:
    """Return the gradients of a copy in the types and shardings of the stored parameters.

    Args:
        config: The resolved configuration.
        gradients: The gradients of `compute_copy`.
        parameters: The stored parameters.
    """
    if splits_state(config):
        gradients = constrain_parameters(gradients, over_data=True)
    return jax.tree.map(lambda a, b: a.astype(b.dtype), gradients, parameters)


def compute_types(model: nnx.Module) -> dict[str, Any]:
    """Return the type in which each linear layer computes, by the paths of its parameters.

    Parameters of other layers, such as LayerNorm, are not in the result, so they are not cast.
    """
    return {
        "/".join(map(str, (*path, name))): module.dtype
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.Linear | nnx.LinearGeneral) and module.dtype is not None
        for name in ("kernel", "bias")
    }
