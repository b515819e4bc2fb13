"""Projections grouped by view, and matrix helpers, for objectives that compare embedding
dimensions.

Each call of `products` sums over the images of the global batch, with one reduction over devices.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from can_jax.objectives.base import Arrays
from can_jax.objectives.rows import projected

Projections = Float[Array, "images views width"]
Matrix = Float[Array, "width width"]


def projected_by_view(arrays: Arrays, head: Callable[..., Array]) -> Projections:
    """Return the projections of all pooled embeddings, grouped by image and view, in at least
    float32."""
    assert arrays.pooled is not None
    return projected(arrays, head).reshape(*arrays.pooled.shape[:2], -1)


def products(one: Float[Array, "images width"], other: Float[Array, "images width"]) -> Matrix:
    """Return ``one.T @ other``, summed over the images of the global batch in full precision."""
    return jnp.matmul(one.T, other, precision=jax.lax.Precision.HIGHEST)


def pairs_of_views(embeddings: Projections) -> Iterator[tuple[Array, Array]]:
    """Yield the two (images, width) embedding matrices of each pair of different views."""
    views = embeddings.shape[1]
    for one in range(views):
        for other in range(one + 1, views):
            yield embeddings[:, one], embeddings[:, other]


def off_diagonal(matrix: Matrix) -> Matrix:
    """Return the matrix with its diagonal set to zero."""
    return jnp.where(jnp.eye(matrix.shape[0], dtype=bool), 0.0, matrix)


def mean(terms: list[Array]) -> Array:
    """Return the elementwise mean of arrays of the same shape."""
    return sum(terms[1:], start=terms[0]) / len(terms)
