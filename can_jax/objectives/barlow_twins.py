"""The Barlow Twins loss, which moves the cross-correlation matrix of two views toward the identity.

See arXiv 2103.03230.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from can_jax.objectives.base import Arrays, Loss, Metrics, Objective
from can_jax.objectives.rows import projector
from can_jax.objectives.views import (
    mean,
    off_diagonal,
    pairs_of_views,
    products,
    projected_by_view,
)
from can_jax.utils.settings import Key, Number


def loss(arrays: Arrays, head: Callable[..., Array], redundancy: float) -> tuple[Loss, Metrics]:
    """Compute ``sum_i (1 - C_ii)^2 + redundancy * sum_{i != j} C_ij^2``, averaged over pairs of
    views (eq. 1).

    ``C`` is the cross-correlation matrix of the projected embeddings of two views over the global
    batch (eq. 2). Each embedding dimension is centered and divided by ``sqrt(variance + 1e-5)``,
    like the BatchNorm without affine parameters in facebookresearch/barlowtwins.

    Args:
        arrays: The network outputs and targets of one training step.
        head: The projection head, called once on the pooled embeddings of all views of the global
            batch.
        redundancy: The coefficient of the squared off-diagonal entries of the matrix ``C``.
    """
    z = projected_by_view(arrays, head)
    centered = z - z.mean(axis=0)
    normed = centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=0) + 1e-5)
    matrices = [products(*pair) / z.shape[0] for pair in pairs_of_views(normed)]
    same = mean([jnp.sum(jnp.square(1 - jnp.diagonal(matrix))) for matrix in matrices])
    other = mean([jnp.sum(jnp.square(off_diagonal(matrix))) for matrix in matrices])
    correlation = mean([jnp.mean(jnp.diagonal(matrix)) for matrix in matrices])
    return same + redundancy * other, {
        "barlow_twins/invariance": same,
        "barlow_twins/redundancy": other,
        "barlow_twins/correlation": correlation,
    }


OBJECTIVE = Objective(
    reads=frozenset({"pooled"}),
    loss=loss,
    keys={
        "redundancy": Key(
            0.0051, Number(0, 1e6), "The coefficient of the squared off-diagonal correlations."
        )
    },
    head=projector,
    relates_rows=True,
    min_views=2,
    min_images=2,
)
