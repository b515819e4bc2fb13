"""Maximum entropy coding with a truncated Taylor series (MEC, arXiv 2210.11464).

For an (m, d) matrix ``Z`` of embeddings and a squared distortion ``e^2``, the minimal coding length
is ``(m + d) / 2 * log det(I + d / (m e^2) Z.T Z)``. The loss replaces ``Z.T Z`` by the product of
the embeddings of two views, so that maximizing the coding length also aligns the views. The loss
approximates the logarithm by the first ``order`` terms of its Taylor series.
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
    """Return ``sum_k (-1)^(k + 1) / k * trace(matrix^k)`` over k from 1 to ``order``.

    The sum converges to ``log det(I + matrix)`` if all eigenvalues are below 1 in absolute value.
    """
    total, power = jnp.trace(matrix), matrix
    for k in range(2, order + 1):
        if k == order:  # The trace of a product can be computed without the product.
            trace = jnp.sum(power * matrix.T)
        else:
            power = jnp.matmul(power, matrix, precision=jax.lax.Precision.HIGHEST)
            trace = jnp.trace(power)
        total += (-1) ** (k + 1) / k * trace
    return total


def loss(
    arrays: Arrays, head: Callable[..., Array], distortion: float, order: int
) -> tuple[Loss, Metrics]:
    """Compute the negative coding length of the embeddings, averaged over all pairs of views.

    The coding length is divided by ``(m + d) / (2 distortion)``; the first-order term of the loss
    is then the negative mean cosine similarity of two views. The division keeps the loss and its
    gradient from growing with the batch size or the embedding dimension.

    Args:
        arrays: The network outputs and targets of one training step.
        head: The projection head, called once on the pooled embeddings of all views of the global
            batch.
        distortion: The squared distortion per dimension, ``e^2 / d``; positive.
        order: The number of terms of the Taylor series of the logarithm; at least 1.
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
            0.06, Number(1e-3, 1e3), "The squared coding distortion per embedding dimension."
        ),
        "order": Key(4, Whole(1, 64), "The number of Taylor terms of the logarithm."),
    },
    head=projector,
    relates_rows=True,
    min_views=2,
    min_images=2,
)
