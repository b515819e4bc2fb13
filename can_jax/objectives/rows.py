"""Blockwise similarities between all embeddings of the global batch, and masks that classify pairs
of embeddings.

A row is the embedding of one view of an image. Every device holds a shard of the embeddings as
queries, and gathers all embeddings as keys. The keys are processed in blocks. The function
`projector` builds the projection head of most objectives that compare embeddings.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from can_jax.distributed.mesh import constrain_batch_sharding, replicate, row_shards
from can_jax.models.heads import Projector
from can_jax.objectives.base import Arrays, at_least_float32
from can_jax.utils.settings import Key, Whole

# The most similarities that a device computes at a time if `block` is not set: 128 MiB in float32.
BLOCK_ENTRIES = 2**25


class Rows(NamedTuple):
    """The batch index and the class label of each row of a batch, or of a block of keys."""

    position: Int[Array, " rows"]
    label: Int[Array, " rows"] | None  # None: only views of one image are positives


class RowStatistics(NamedTuple):
    """The statistics of each query row over the blocks of keys processed so far.

    Attributes:
        normalizer: The log of the softmax denominator.
        positives: The number of positive keys.
        positive_sum: The sum of the similarities to positive keys.
        pair_sum: The sum of the similarities to other views of the same image.
        other_sum: The sum of the similarities to views of other images.
        best: The largest similarity to another row.
        nearest: The batch index of the other row with the largest similarity.
    """

    normalizer: Float[Array, " rows"]
    positives: Int[Array, " rows"]
    positive_sum: Float[Array, " rows"]
    pair_sum: Float[Array, " rows"]
    other_sum: Float[Array, " rows"]
    best: Float[Array, " rows"]
    nearest: Int[Array, " rows"]

    @classmethod
    def empty(cls, unit: Float[Array, "rows width"]) -> "RowStatistics":
        """Return the initial statistics, before the first block of keys."""
        zero = jnp.zeros_like(unit, shape=unit.shape[0])
        none = jnp.zeros_like(jnp.arange(unit.shape[0]))
        return cls(zero - jnp.inf, none, zero, zero, zero, zero - jnp.inf, none)

    def add(
        self,
        similarity: Float[Array, "rows keys"],
        pair: "Pairs",
        position: Int[Array, " keys"],
    ) -> "RowStatistics":
        """Return the statistics after a further block of keys; ``normalizer`` is not updated.

        Only ``positive_sum`` is differentiable.

        Args:
            similarity: The similarity of every row to every key of the block.
            pair: The masks that classify each pair of a row and a key.
            position: The batch index of each key.
        """
        fixed = jax.lax.stop_gradient(similarity)
        others = jnp.where(pair.itself, -jnp.inf, fixed)
        best, at = others.max(axis=1), others.argmax(axis=1)
        apart = ~pair.same_image & ~pair.itself
        count = pair.positive.sum(axis=1, dtype=self.positives.dtype)
        return self._replace(
            positives=self.positives + count,
            positive_sum=self.positive_sum + jnp.sum(similarity, axis=1, where=pair.positive),
            pair_sum=self.pair_sum + jnp.sum(fixed, axis=1, where=pair.same_image),
            other_sum=self.other_sum + jnp.sum(fixed, axis=1, where=apart),
            best=jnp.maximum(self.best, best),
            nearest=jnp.where(best > self.best, position[at], self.nearest),
        )


def normalize(x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Normalize vectors to unit length along the last axis.

    A vector shorter than 1e-12 becomes zero and gets no gradient. The gradient of normalization is
    inversely proportional to the length of the vector. A gradient above 1e12 would distort Adam's
    second moments for many steps.
    """
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    long = squares > 1e-24
    # The inner `where` keeps the derivative of the root finite where the outer one discards it.
    return jnp.where(long, x * jax.lax.rsqrt(jnp.where(long, squares, 1.0)), 0.0)


def block_size(rows: int, shards: int) -> int:
    """Return the default number of keys per block of the similarity matrix.

    The block size is at least 1, and limits a device to `BLOCK_ENTRIES` similarities at a time.

    Args:
        rows: The number of rows of the global batch.
        shards: The number of devices over which the rows are split.
    """
    return max(1, min(rows, BLOCK_ENTRIES * shards // rows))


def similarities(
    rows: Float[Array, "rows width"], keys: Float[Array, "keys width"]
) -> Float[Array, "rows keys"]:
    """Return the dot products of all rows and keys in full precision, sharded by rows."""
    return constrain_batch_sharding(jnp.matmul(rows, keys.T, precision=jax.lax.Precision.HIGHEST))


class Pairs(NamedTuple):
    """Masks that classify each pair of a row and a key.

    Attributes:
        itself: True if the pair is excluded because the key is the row itself or padding.
        same_image: True if the key is another view of the row's image.
        positive: True if the key is a positive of the row.
    """

    itself: Bool[Array, "rows keys"]
    same_image: Bool[Array, "rows keys"]
    positive: Bool[Array, "rows keys"]


def pairs(rows: Rows, keys: Rows, views: int) -> Pairs:
    """Classify every pair of a row and a key. Keys whose batch index is at least the number of rows
    are padding.

    Args:
        rows: The batch indices and class labels of all rows of the batch.
        keys: The batch indices and class labels of a block of keys.
        views: The number of augmented views per image.
    """
    itself = rows.position[:, None] == keys.position
    padding = keys.position >= rows.position.shape[0]
    same_image = (rows.position[:, None] // views == keys.position // views) & ~itself & ~padding
    positive = same_image
    if rows.label is not None:
        assert keys.label is not None
        same_label = (rows.label[:, None] == keys.label) & (keys.label >= 0) & ~itself & ~padding
        positive |= same_label
    return Pairs(itself | padding, same_image, positive)


def blocks(x: Array, size: int) -> Array:
    """Replicate the rows on every device and split them into blocks. The last block is padded with
    zeros."""
    count = -(-x.shape[0] // size)
    padding = [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(replicate(x), padding).reshape(count, size, *x.shape[1:])


def key_blocks(rows: Rows, size: int) -> Rows:
    """Split the indices and labels of the rows into blocks of keys, in the layout of `blocks`."""
    count = -(-rows.position.shape[0] // size)
    index = jnp.arange(count * size).reshape(count, size)
    return Rows(index, None if rows.label is None else blocks(rows.label, size))


def projector(config: Any, width: int, **options: Any) -> Projector:
    """Build a projection head with the settings ``config.model.projector``.

    Args:
        config: The configuration.
        width: The embedding dimension of the encoder.
        **options: The arguments ``dtype``, ``param_dtype`` and ``rngs`` of `flax.nnx` layers.
    """
    return Projector(width, **config.model.projector, **options)


def projected(arrays: Arrays, head: Callable[..., Array]) -> Float[Array, "rows outputs"]:
    """Apply the projection head to the pooled embedding of each view, and cast the result to at
    least float32."""
    assert arrays.pooled is not None
    images, views, width = arrays.pooled.shape
    return at_least_float32(head(arrays.pooled.reshape(images * views, width), train=True))


def on_sphere(rows: Float[Array, "rows width"]) -> Float[Array, "rows width"]:
    """Return the L2-normalized rows, sharded over devices along the row axis."""
    return constrain_batch_sharding(normalize(rows))


# The config key `block` of the objectives that compare rows.
BLOCK = Key(
    None,
    Whole(1, 2**31 - 1),
    "The number of keys per block of the similarity matrix; by default, a block has at most 2**25 "
    "similarities per device.",
)


def keys_at_a_time(block: int | None, rows: int) -> int:
    """Return the number of keys per block: ``block``, or `block_size` if ``block`` is None; at
    most ``rows``."""
    return min(block or block_size(rows, row_shards()), rows)
