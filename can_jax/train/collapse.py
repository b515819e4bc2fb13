"""Metrics of a step that describe the embeddings, and reveal their collapse."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from can_jax.objectives.rows import normalize


def embedding_metrics(pooled: Float[Array, "rows width"], views: int) -> dict[str, Array]:
    """Compute metrics that describe the L2-normalized pooled embeddings and reveal their collapse.

    ``embedding/std`` is the standard deviation over the batch, averaged over dimensions and
    multiplied by ``sqrt(width)``. ``embedding/std`` is about 1 for embeddings spread evenly over
    the sphere, and 0 if all embeddings are equal. ``embedding/gram`` is the (width, width) matrix
    from which the logger computes the effective rank. ``embedding/alignment`` is the mean squared
    distance between two views of an image (arXiv 2005.10242), from 0 to 4.

    Args:
        pooled: The embeddings of all views. The views of an image are consecutive rows.
        views: The number of views of each image. With one view per image,
            ``embedding/alignment`` is omitted.
    """
    unit = normalize(pooled.astype(jnp.float32))
    rows, width = unit.shape
    metrics = {
        "embedding/std": unit.std(axis=0).mean() * width**0.5,
        "embedding/gram": unit.T @ unit / rows,
    }
    if views > 1:
        # Summed over pairs, the squared distances of unit vectors are views^2 - |their sum|^2.
        sums = unit.reshape(-1, views, width).sum(axis=1)
        shared = jnp.sum(jnp.square(sums), axis=-1).mean()
        pairs = views * (views - 1) / 2
        metrics["embedding/alignment"] = (views**2 - shared) / pairs
    return metrics
