"""LAMB, LARS and Muon for networks that stack the parameters of their transformer blocks.

The parameters of all transformer blocks are stacked along a leading layer axis. Optax treats a
stacked array as a single parameter. Optax's LAMB and LARS would use one trust ratio for all layers,
and optax's Muon would skip stacked matrices. The optimizers of this module treat each layer
separately.
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
    """Return the axis indices of a parameter, without the layer axis of a stacked parameter.

    Args:
        name: The path of the parameter, such as ``encoder/blocks/layers/mlp/expand/kernel``.
        axes: The number of axes of the parameter, including the layer axis.
    """
    return tuple(range(1 if STACKED in name else 0, axes))


def scale_by_trust_ratio(coefficient: float = 1.0) -> optax.GradientTransformation:
    """Return a transformation that multiplies each layer's update by its trust ratio.

    The trust ratio is ``coefficient * |parameter| / |update|``, or 1 if either norm is 0. The
    updates of parameters without weight decay, such as biases, are not scaled.

    Args:
        coefficient: The trust coefficient, by which every trust ratio is multiplied.
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
    """Return whether Muon, rather than AdamW, updates a parameter.

    Muon updates the weight matrices of hidden layers. AdamW updates vectors, learned tokens,
    position embeddings, and the first and last layers (`ENDS`).

    Args:
        name: The path of the parameter, such as ``encoder/blocks/layers/mlp/expand/kernel``.
        axes: The number of axes of the parameter, including the layer axis.
    """
    matrix = len(layer_axes(name, axes)) > 1 and rule_of(name, axes).decay
    return matrix and not any(end in name for end in ENDS)


def matrix_axes(parameters: Tree) -> Tree:
    """Return the input axis and the output axis of each parameter that Muon updates.

    If a parameter has further axes, Muon orthogonalizes a separate matrix for each index along
    them. For example, the query, key and value kernels of each attention head are separate
    matrices.
    """

    def axes(path: tuple[Any, ...], leaf: Array) -> optax.contrib.MuonDimensionNumbers:
        first = layer_axes(path_name(path), leaf.ndim)[0]
        return optax.contrib.MuonDimensionNumbers(first, leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, parameters)


def lars(
    weight_decay: float, mask: Any, momentum: float = 0.9, trust_coefficient: float = 0.001
) -> optax.GradientTransformation:
    """Return LARS (arXiv 1708.03888) without the multiplication by the learning rate.

    Only parameters that `can_jax.optimizers.weight_decay.decay_mask` selects have a weight decay
    and a trust ratio. Biases and normalization scales have no weight decay and no trust ratio, as
    in VICReg and SimCLR.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=mask),
        scale_by_trust_ratio(trust_coefficient),
        optax.identity(),  # keeps the trace at index 3, as in `optax.lars`; checkpoints store it
        optax.trace(momentum),
    )


def lamb(
    b1: float, b2: float, eps: float, mu_dtype: Any, weight_decay: float, mask: Any
) -> optax.GradientTransformation:
    """Return LAMB (arXiv 1904.00962) without the multiplication by the learning rate."""
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
    """Return Muon for the matrices that `is_matrix` selects, and AdamW for all other parameters.

    Muon's updates are scaled to a root mean square of about ``rms``, which is typical of AdamW
    (arXiv 2502.16982). Learning rates tuned for AdamW are therefore a starting point for Muon.
    ``b1`` and ``b2`` apply to AdamW alone.
    """

    def scaled(path: tuple[Any, ...], update: Array) -> Array:
        first = layer_axes(path_name(path), update.ndim)[0]
        return update * (rms * max(update.shape[first], update.shape[-1]) ** 0.5)

    def scale_all(updates: Tree, _: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(scaled, updates)

    matrices = optax.contrib.scale_by_muon(
        beta=momentum, eps=eps, mu_dtype=mu_dtype, weight_dimension_numbers=matrix_axes
    )
    transforms = {
        "muon": optax.chain(matrices, optax.stateless(scale_all)),
        "adam": optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
    }
    return optax.chain(
        optax.partition(transforms, _labels), optax.add_decayed_weights(weight_decay, mask=mask)
    )


def _labels(parameters: Tree) -> Tree:
    """Label each parameter ``muon`` or ``adam``, for `optax.partition`."""

    def label(path: tuple[Any, ...], leaf: Array) -> str:
        return "muon" if is_matrix(path_name(path), leaf.ndim) else "adam"

    return jax.tree_util.tree_map_with_path(label, parameters)
