"""Maximum entropy coding, by a truncated series (MEC, arXiv 2210.11464).

The minimal coding length of ``m`` embeddings of width ``d`` at a distortion ``e^2`` is
``(m + d) / 2 * log det(I + d / (m e^2) Z.T Z)``. With the embeddings of two views in place of
``Z.T Z``, its maximum aligns the views, too. The logarithm is its Taylor series up to ``order``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from can_jax.objectives.base import Arrays, Loss, Metrics, Objective
from can_jax.objectives.rows import normalize, projector
from can_jax.objectives.views import mean, pairs_of_views, products, projected_by_view
from can_jax.utils.settings import Key, Number, Whole


def log_determinant(matrix: Float[Array, "width width"], order: int) -> Float[Array, ""]:
    """Return ``sum_k (-1)^(k + 1) / k * trace(matrix^k)`` for k up to ``order``.

    The sum approaches ``log det(I + matrix)`` if all eigenvalues are below 1 in absolute value.
    """
    total, power = jnp.trace(matrix), matrix
    for k in range(2, order + 1):
        if k == order:  # the trace of a product needs no product
            trace = jnp.sum(power * matrix.T)
        else:
            power = jnp.matmul(power, matrix, precision=jax.lax.Precision.HIGHEST)
            trace = jnp.trace(power)
        total += (-1) ** (k + 1) / k * trace
    return total


def loss(
    arrays: Arrays, head: Callable[..., Array], distortion: float, order: int
) -> tuple[Loss, Metrics]:
    """Compute the negative coding length, averaged over the pairs of views.

    The length is divided by ``(m + d) / (2 distortion)``, so that the first term of the series is
    minus the mean cosine similarity of two views. Neither the value nor its gradient then grows
    with the batch or the width.

    Args:
        arrays: The outputs of the network and the targets of a step.
        head: The projector, a function of all rows of the global batch.
        distortion: The squared distortion of a dimension, ``e^2 / d``.
        order: The number of terms of the series.
    """
    z = normalize(projected_by_view(arrays, head))
    images = z.shape[0]
    lengths = [
        log_determinant(products(*pair) / (images * distortion), order)
        for pair in pairs_of_views(z)
    ]
    similarity = mean([jnp.sum(one * other) / images for one, other in pairs_of_views(z)])
    return -distortion * mean(lengths), {"mec/similarity": similarity}


OBJECTIVE = Objective(
    reads=frozenset({"pooled"}),
    loss=loss,
    keys={
        "distortion": Key(
            0.06, Number(1e-3, 1e3), "The squared distortion per dimension of the code."
        ),
        "order": Key(4, Whole(1, 64), "The number of terms of the series of the logarithm."),
    },
    head=projector,
    relates_rows=True,
    min_views=2,
    min_images=2,
)
