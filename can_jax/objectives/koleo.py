"""The KoLeo loss, which pushes embeddings away from their nearest neighbors (arXiv 1806.03198)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from can_jax.distributed.mesh import constrain_batch_sharding, replicate
from can_jax.objectives.base import Arrays, Loss, Metrics, Objective, at_least_float32
from can_jax.objectives.rows import (
    BLOCK,
    Rows,
    blocks,
    key_blocks,
    keys_at_a_time,
    on_sphere,
    similarities,
)

EPSILON = 1e-8  # added to a distance before its logarithm, as in DINOv2
# Rounding separates equal embeddings by a few units of precision. A distance of at most this many
# units therefore counts as 0. Otherwise the loss would depend on how the compiler fuses operations.
ROUNDING = 16


def nearest(unit: Float[Array, "rows width"], views: int, block: int) -> Int[Array, " rows"]:
    """Return, for each embedding, the index of the nearest other embedding with the same view
    index.

    Args:
        unit: The embeddings, in which the views of an image are adjacent rows.
        views: The number of augmented views per image.
        block: The number of keys per block of the similarity matrix.
    """
    rows = Rows(jnp.arange(unit.shape[0]), None)

    def compare(seen: tuple[Array, Array], these: tuple[Array, Rows]) -> tuple[tuple, None]:
        keys, position = these[0], these[1].position
        # The distance is ``|x|^2 + |y|^2 - 2 x y``; the first term is the same for all keys.
        closeness = similarities(unit, keys) - jnp.sum(jnp.square(keys), axis=1) / 2
        candidate = (position % views == rows.position[:, None] % views) & (
            position != rows.position[:, None]
        )
        candidate &= position < unit.shape[0]
        closeness = jnp.where(candidate, closeness, -jnp.inf)
        best, at = closeness.max(axis=1), position[closeness.argmax(axis=1)]
        return (jnp.maximum(best, seen[0]), jnp.where(best > seen[0], at, seen[1])), None

    start = jnp.full_like(unit, -jnp.inf, shape=unit.shape[0]), jnp.zeros_like(rows.position)
    start = jax.tree.map(constrain_batch_sharding, start)
    (_, at), _ = jax.lax.scan(compare, start, (blocks(unit, block), key_blocks(rows, block)))
    return at


def loss(arrays: Arrays, block: int | None) -> tuple[Loss, Metrics]:
    """Compute the mean of ``-log(d + 1e-8)`` over embeddings, where d is the distance to the
    nearest neighbor.

    The pooled embeddings are L2-normalized. An embedding is compared only with embeddings of the
    same view index, as in DINOv2 (arXiv 2304.07193, section 4). Two embeddings that are equal up to
    rounding get no gradient, since the distance is not differentiable at 0.

    Args:
        arrays: The network outputs and targets of one training step.
        block: The number of keys per block of the similarity matrix; None selects the default,
            `can_jax.objectives.rows.block_size`.
    """
    assert arrays.pooled is not None
    images, views, width = arrays.pooled.shape
    unit = on_sphere(at_least_float32(arrays.pooled).reshape(images * views, width))
    size = keys_at_a_time(block, images * views)
    at = nearest(jax.lax.stop_gradient(unit), views, size)
    squares = jnp.sum(jnp.square(unit - replicate(unit)[at]), axis=1)
    apart = squares > (ROUNDING * jnp.finfo(unit.dtype).eps) ** 2
    distances = jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1.0)), 0.0)
    return -jnp.mean(jnp.log(distances + EPSILON)), {"koleo/nearest": distances.mean()}


OBJECTIVE = Objective(
    reads=frozenset({"pooled"}),
    loss=loss,
    keys={"block": BLOCK},
    relates_rows=True,
    min_images=2,
)
