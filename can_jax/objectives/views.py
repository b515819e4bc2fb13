"""Embeddings by view, and their products, for objectives that compare dimensions with each other.

The sums run over the rows of the global batch, so each is reduced over devices once.
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
    """Return the projection of each view, in at least float32."""
    assert arrays.pooled is not None
    return projected(arrays, head).reshape(*arrays.pooled.shape[:2], -1)


def products(one: Float[Array, "images width"], other: Float[Array, "images width"]) -> Matrix:
    """Return ``one.T @ other`` in full precision."""
    return jnp.matmul(one.T, other, precision=jax.lax.Precision.HIGHEST)


def pairs_of_views(embeddings: Projections) -> Iterator[tuple[Array, Array]]:
    """Yield the embeddings of each two different views, (images, width) each."""
    views = embeddings.shape[1]
    for one in range(views):
        for other in range(one + 1, views):
            yield embeddings[:, one], embeddings[:, other]


def off_diagonal(matrix: Matrix) -> Matrix:
    """Return a matrix with zeros on its diagonal."""
    return jnp.where(jnp.eye(matrix.shape[0], dtype=bool), 0.0, matrix)


def mean(terms: list[Array]) -> Array:
    """Return the mean of arrays of one shape."""
    return sum(terms[1:], start=terms[0]) / len(terms)
