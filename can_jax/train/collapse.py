"""Metrics of a step that reveal collapse of the embeddings."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from can_jax.objectives.rows import normalize


def embedding_metrics(pooled: Float[Array, "rows width"]) -> dict[str, Array]:
    """Compute metrics that reveal collapse from the L2-normalized pooled embeddings.

    ``embedding/std`` is the standard deviation over the batch, averaged over dimensions and
    multiplied by ``sqrt(width)``. ``embedding/std`` is about 1 for embeddings spread evenly over
    the sphere, and 0 if all are equal. ``embedding/gram`` is the (width, width) matrix from which
    the logger computes the effective rank.
    """
    unit = normalize(pooled.astype(jnp.float32))
    rows, width = unit.shape
    return {
        "embedding/std": unit.std(axis=0).mean() * width**0.5,
        "embedding/gram": unit.T @ unit / rows,
    }
