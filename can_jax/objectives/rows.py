"""Rows compared with rows: unit length, blocks of keys, and which pairs are positives.

Every device holds some rows of the batch and receives all rows as keys, in blocks. The head that
projects rows is here, too, since most objectives that compare rows own one.
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

# The similarities that a device computes at a time if `block` is not set: 128 MiB in float32.
BLOCK_ENTRIES = 2**25


class Rows(NamedTuple):
    """The position and the label of each row of a batch, or of a block of keys."""

    position: Int[Array, " rows"]
    label: Int[Array, " rows"] | None  # None: only views of one image are positives


class RowStatistics(NamedTuple):
    """Running statistics of each query row over the key blocks processed so far.

    Attributes:
        normalizer: The log of the sum of ``exp(similarity / temperature)``.
        positives: The number of positive keys.
        positive_sum: The sum of the similarities to positive keys.
        pair_sum: The sum of the similarities to other views of the same image.
        other_sum: The sum of the similarities to views of other images.
        best: The largest similarity.
        nearest: The index of the key with the largest similarity.
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
        """Return the statistics of rows that have seen no key."""
        zero = jnp.zeros_like(unit, shape=unit.shape[0])
        none = jnp.zeros_like(jnp.arange(unit.shape[0]))
        return cls(zero - jnp.inf, none, zero, zero, zero, zero - jnp.inf, none)

    def add(
        self,
        similarity: Float[Array, "rows keys"],
        pair: "Pairs",
        position: Int[Array, " keys"],
    ) -> "RowStatistics":
        """Return the statistics after a block of keys, all but the normalizer.

        Only ``positive_sum`` has a gradient.

        Args:
            similarity: The similarities of all rows to the keys.
            pair: What each row and key are to each other.
            position: The index of each key.
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
    """Scale vectors to length 1 along the last axis.

    A vector shorter than 1e-12 becomes zero, with zero gradient. The gradient of the division would
    exceed 1e12 and spoil the optimizer's second moments for many steps.
    """
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    long = squares > 1e-24
    # The inner `where` keeps the derivative of the root finite where the outer one discards it.
    return jnp.where(long, x * jax.lax.rsqrt(jnp.where(long, squares, 1.0)), 0.0)


def block_size(rows: int, shards: int) -> int:
    """Return the number of keys to compare at a time.

    A device then computes up to `BLOCK_ENTRIES` similarities at a time, but at least one key.

    Args:
        rows: The rows of the global batch.
        shards: The number of devices over which the rows are split.
    """
    return max(1, min(rows, BLOCK_ENTRIES * shards // rows))


def similarities(
    rows: Float[Array, "rows width"], keys: Float[Array, "keys width"]
) -> Float[Array, "rows keys"]:
    """Return the dot products of all pairs in full precision; the rows stay on their devices."""
    return constrain_batch_sharding(jnp.matmul(rows, keys.T, precision=jax.lax.Precision.HIGHEST))


class Pairs(NamedTuple):
    """The relations between rows and keys.

    Attributes:
        itself: True if the key is the row itself or padding, so that the pair is excluded.
        same_image: True if the key is another view of the row's image.
        positive: True if the key is a positive of the row.
    """

    itself: Bool[Array, "rows keys"]
    same_image: Bool[Array, "rows keys"]
    positive: Bool[Array, "rows keys"]


def pairs(rows: Rows, keys: Rows, views: int) -> Pairs:
    """Determine the relation of every row to every key. Keys beyond the number of rows are padding.

    Args:
        rows: All rows of the batch.
        keys: A block of keys.
        views: The number of views per image.
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
    """Gather the rows on every device and cut them into blocks; zeros pad the last block."""
    count = -(-x.shape[0] // size)
    padding = [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(replicate(x), padding).reshape(count, size, *x.shape[1:])


def key_blocks(rows: Rows, size: int) -> Rows:
    """Cut the rows into blocks of keys, in the layout of `blocks`."""
    count = -(-rows.position.shape[0] // size)
    index = jnp.arange(count * size).reshape(count, size)
    return Rows(index, None if rows.label is None else blocks(rows.label, size))


def projector(config: Any, width: int, **options: Any) -> Projector:
    """Build the projector of ``config.model.projector``; see `can_jax.objectives.base.Objective`.

    Args:
        config: The configuration.
        width: The width of the encoder.
        **options: The types and the random numbers of each layer.
    """
    return Projector(width, **config.model.projector, **options)


def projected(arrays: Arrays, head: Callable[..., Array]) -> Float[Array, "rows outputs"]:
    """Return the projection of the pooled embedding of each row, in at least float32."""
    assert arrays.pooled is not None
    images, views, width = arrays.pooled.shape
    return at_least_float32(head(arrays.pooled.reshape(images * views, width), train=True))


def on_sphere(rows: Float[Array, "rows width"]) -> Float[Array, "rows width"]:
    """Return rows of length 1, each on its device."""
    return constrain_batch_sharding(normalize(rows))


# The config key by which objectives limit the keys that they compare at a time.
BLOCK = Key(
    None,
    Whole(1, 2**31 - 1),
    "The number of keys compared at a time; by default 2**25 pairs per device.",
)


def keys_at_a_time(block: int | None, rows: int) -> int:
    """Return the number of keys to compare at a time: ``block``, by default `block_size`."""
    return min(block or block_size(rows, row_shards()), rows)
