"""LAMB, LARS and Muon, which act on whole matrices, for the stacked blocks of a network.

The parameters of blocks have a leading layer axis. optax's own forms of these optimizers take such
an array for one parameter: they would share one trust ratio among all layers, and leave stacked
matrices out of Muon. The forms here act on each layer by itself.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array

from can_jax.distributed.sharding_rules import path_name, rule_of

Tree = Any
STACKED = "blocks/layers/"  # in the path of a parameter with a leading layer axis
# Muon leaves matrices from pixels to features, and from features to outputs, to Adam.
ENDS = ("patch_embed/", "predict/", "predict_noise/", "head/kernel")


def layer_axes(name: str, axes: int) -> tuple[int, ...]:
    """Return the axes over which one layer of a parameter extends.

    Args:
        name: The path of the parameter.
        axes: The number of its axes.
    """
    return tuple(range(1 if STACKED in name else 0, axes))


def scale_by_trust_ratio(coefficient: float = 1.0) -> optax.GradientTransformation:
    """Scale each layer's update by ``coefficient * |parameter| / |update|``.

    Only parameters that decay, the matrices, are scaled. The factor is 1 if a norm is 0.

    Args:
        coefficient: The trust coefficient.
    """

    def scaled(path: tuple[Any, ...], update: Array, parameter: Array) -> Array:
        name = path_name(path)
        if not rule_of(name, update.ndim).decay:
            return update
        axes = layer_axes(name, update.ndim)

        def norm(x: Array) -> Array:
            return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=axes, keepdims=True))

        size, change = norm(parameter), norm(update)
        defined = (size > 0) & (change > 0)
        ratio = jnp.where(defined, coefficient * size / jnp.where(defined, change, 1.0), 1.0)
        return update * ratio.astype(update.dtype)

    def update(updates: Tree, parameters: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(scaled, updates, parameters)

    return optax.stateless(update)


def is_matrix(name: str, axes: int) -> bool:
    """Return whether Muon orthogonalizes a parameter.

    Muon orthogonalizes the linear maps of layers. AdamW updates vectors, tokens, and the `ENDS` of
    a network.

    Args:
        name: The path of the parameter.
        axes: The number of its axes.
    """
    matrix = len(layer_axes(name, axes)) > 1 and rule_of(name, axes).decay
    return matrix and not any(end in name for end in ENDS)


def matrix_axes(parameters: Tree) -> Tree:
    """Return the input and the output axis of each matrix that Muon orthogonalizes.

    Other axes count its matrices: of attention, the queries, keys and values of each head are
    matrices of their own.
    """

    def axes(path: tuple[Any, ...], leaf: Array) -> optax.contrib.MuonDimensionNumbers:
        first = layer_axes(path_name(path), leaf.ndim)[0]
        return optax.contrib.MuonDimensionNumbers(first, leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, parameters)


def lars(
    weight_decay: float, mask: Any, momentum: float = 0.9, trust_coefficient: float = 0.001
) -> optax.GradientTransformation:
    """Return LARS (arXiv 1708.03888) without its learning rate.

    Biases, norms and tokens neither decay nor have a trust ratio, as in VICReg and SimCLR.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=mask),
        scale_by_trust_ratio(trust_coefficient),
        optax.identity(),  # in place of optax's rate, since checkpoints name the trace by index
        optax.trace(momentum),
    )


def lamb(
    b1: float, b2: float, eps: float, mu_dtype: Any, weight_decay: float, mask: Any
) -> optax.GradientTransformation:
    """Return LAMB (arXiv 1904.00962) without its learning rate."""
    return optax.chain(
        optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
        optax.add_decayed_weights(weight_decay, mask=mask),
        scale_by_trust_ratio(),
    )


def muon(
    b1: float,
    b2: float,
    eps: float,
    mu_dtype: Any,
    weight_decay: float,
    mask: Any,
    momentum: float = 0.95,
    rms: float = 0.2,
) -> optax.GradientTransformation:
    """Return Muon for the matrices of layers, and AdamW for all other parameters.

    An update of Muon has the root mean square ``rms``, as that of AdamW (arXiv 2502.16982), so that
    learning rates of AdamW are a starting point. ``b1``, ``b2`` and ``eps`` are those of AdamW.
    """

    def scaled(path: tuple[Any, ...], update: Array) -> Array:
        first = layer_axes(path_name(path), update.ndim)[0]
        return update * (rms * max(update.shape[first], update.shape[-1]) ** 0.5)

    def size(updates: Tree, _: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(scaled, updates)

    matrices = optax.contrib.scale_by_muon(
        beta=momentum, eps=eps, mu_dtype=mu_dtype, weight_dimension_numbers=matrix_axes
    )
    kinds = {
        "muon": optax.chain(matrices, optax.stateless(size)),
        "adam": optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
    }
    return optax.chain(
        optax.partition(kinds, _kinds), optax.add_decayed_weights(weight_decay, mask=mask)
    )


def _kinds(parameters: Tree) -> Tree:
    """Return the optimizer of each parameter in `muon`."""

    def kind(path: tuple[Any, ...], leaf: Array) -> str:
        return "muon" if is_matrix(path_name(path), leaf.ndim) else "adam"

    return jax.tree_util.tree_map_with_path(kind, parameters)
