"""InfoNCE over the global batch, and its supervised form (SupCon).

Every device holds some rows of the batch and receives all rows as keys. The similarity matrix is
computed in blocks of keys, forward and backward, so memory grows linearly with the batch.

The backward pass is written by hand and needs no reduction over devices. The gradient that a row
receives as a key follows from two numbers of each query: its normalizer and its count of positives.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from can_jax.distributed.mesh import constrain_batch_sharding, replicate, row_shards
from can_jax.models.can import POOLS
from can_jax.models.heads import Projector
from can_jax.objectives.base import Arrays, Loss, Metrics, Objective, at_least_float32
from can_jax.utils.settings import Choice, Key, Number, Switch, Whole

# Similarities that a device computes at a time, unless a block size is set: 128 MiB in float32.
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

    It is chosen so that a device computes at most `BLOCK_ENTRIES` similarities at a time.

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def contrast(
    unit: Float[Array, "rows width"],
    label: Int[Array, " rows"] | None,
    views: int,
    temperature: float,
    block: int,
) -> tuple[Loss, RowStatistics]:
    """Compute ``-log softmax``, averaged over the positives of a row, then over the rows.

    The softmax is over all other rows. With one positive per row this is InfoNCE (arXiv 2002.05709,
    eq. 1); with several it is SupCon's ``L_out`` (arXiv 2004.11362, eq. 2).

    Args:
        unit: Embeddings of length 1; the views of an image are adjacent.
        label: The label of each row, -1 where unknown; rows of one label are positives of each
            other. None for InfoNCE.
        views: The number of views per image.
        temperature: The divisor of the similarities.
        block: The number of keys compared at a time.

    Returns:
        The loss, and statistics of the similarities. Only the loss has a gradient.
    """
    return _forward(unit, label, views, temperature, block)[0]


def _forward(
    unit: Array, label: Array | None, views: int, temperature: float, block: int
) -> tuple[tuple[Loss, RowStatistics], Any]:
    rows = Rows(jnp.arange(unit.shape[0]), label)
    keys = blocks(unit, block)
    zero = jnp.zeros_like(unit, shape=unit.shape[0])
    none = jnp.zeros_like(rows.position)
    start = RowStatistics(zero - jnp.inf, none, zero, zero, zero, zero - jnp.inf, none)

    def compare(seen: RowStatistics, these: tuple[Array, Rows]) -> tuple[RowStatistics, None]:
        similarity = similarities(unit, these[0])
        pair = pairs(rows, these[1], views)
        others = jnp.where(pair.itself, -jnp.inf, similarity)
        logits = others / temperature
        best, at = others.max(axis=1), others.argmax(axis=1)
        apart = ~pair.same_image & ~pair.itself
        return RowStatistics(
            normalizer=jnp.logaddexp(seen.normalizer, jax.nn.logsumexp(logits, axis=1)),
            positives=seen.positives + pair.positive.sum(axis=1, dtype=none.dtype),
            positive_sum=seen.positive_sum + jnp.sum(similarity, axis=1, where=pair.positive),
            pair_sum=seen.pair_sum + jnp.sum(similarity, axis=1, where=pair.same_image),
            other_sum=seen.other_sum + jnp.sum(similarity, axis=1, where=apart),
            best=jnp.maximum(seen.best, best),
            nearest=jnp.where(best > seen.best, these[1].position[at], seen.nearest),
        ), None

    seen, _ = jax.lax.scan(
        compare, jax.tree.map(constrain_batch_sharding, start), (keys, key_blocks(rows, block))
    )
    chosen = seen.positive_sum / temperature / seen.positives
    loss = jnp.mean(seen.normalizer - chosen)
    return (loss, seen), (unit, keys, label, seen.normalizer, seen.positives)


def _backward(views: int, temperature: float, block: int, saved: Any, cotangent: Any) -> Any:
    """Compute the gradient of ``unit``.

    Every pair contributes twice, once with the row as query and once as key. The gradient of
    ``unit[i]`` is ``sum_j (g[i, j] + g[j, i]) unit[j]``. Here ``g[i, j]`` is
    ``(softmax[i, j] - positive[i, j] / positives[i]) / (temperature * rows)``.
    """
    unit, keys, label, normalizer, positives = saved
    rows = Rows(jnp.arange(unit.shape[0]), label)
    share = 1 / positives.astype(unit.dtype)

    def pull(total: Array, these: Any) -> tuple[Array, None]:
        key, key_rows, key_normalizer, key_share = these
        pair = pairs(rows, key_rows, views)
        logits = similarities(unit, key) / temperature
        softmax = jnp.exp(logits - normalizer[:, None]) + jnp.exp(logits - key_normalizer)
        wanted = jnp.where(pair.positive, share[:, None] + key_share, 0.0)
        pulls = jnp.where(pair.itself, 0.0, softmax - wanted)
        return total + jnp.matmul(pulls, key, precision=jax.lax.Precision.HIGHEST), None

    gathered = (keys, key_blocks(rows, block), blocks(normalizer, block), blocks(share, block))
    total, _ = jax.lax.scan(pull, constrain_batch_sharding(jnp.zeros_like(unit)), gathered)
    return total * (cotangent[0] / (temperature * unit.shape[0])), None


contrast.defvjp(_forward, _backward)


def projector(config: Any, width: int, **options: Any) -> Projector:
    """Build the projector of ``config.model.projector``; see `can_jax.objectives.base.Objective`.

    Args:
        config: The configuration.
        width: The width of the encoder.
        **options: The types and the random numbers of each layer.
    """
    return Projector(width, **config.model.projector, **options)


def loss(
    arrays: Arrays,
    head: Callable[..., Float[Array, "rows outputs"]],
    temperature: float,
    directions: str,
    supervised: bool,
    block: int | None,
) -> tuple[Loss, Metrics]:
    """Compute InfoNCE, or SupCon if ``supervised``, and metrics of the embeddings.

    ``contrastive/top1`` is the fraction of rows whose nearest other row is a view of the same
    image.

    Args:
        arrays: The arrays of a step. An image with label -1 forms a class of its own.
        head: The projector, a function of all rows of the global batch.
        temperature: The divisor of the similarities.
        directions: `mean` over all rows, or `sum` over the views of the mean over images, as in
            google-research/simclr.
        supervised: Whether rows of one label are positives of each other.
        block: The number of keys compared at a time; `block_size` computes the default.
    """
    assert arrays.pooled is not None
    images, views, width = arrays.pooled.shape
    count = images * views
    projection = head(arrays.pooled.reshape(count, width), train=True)
    unit = constrain_batch_sharding(normalize(at_least_float32(projection)))
    label = None
    if supervised:
        assert arrays.labels is not None
        label = jnp.repeat(arrays.labels, views)
    size = min(block or block_size(count, row_shards()), count)
    value, seen = contrast(unit, label, views, temperature, size)
    metrics = {
        "contrastive/top1": jnp.mean(seen.nearest // views == jnp.arange(count) // views),
        "contrastive/positive_similarity": seen.pair_sum.mean() / (views - 1),
        "contrastive/negative_similarity": seen.other_sum.mean() / (count - views),
    }
    return value * views if directions == "sum" else value, metrics


OBJECTIVE = Objective(
    reads=frozenset({"pooled", "labels"}),
    loss=loss,
    weight=0.03,
    keys={
        "temperature": Key(
            0.1, Number(1e-3, 100), "The temperature, by which similarities are divided."
        ),
        "pool": Key("patches", Choice(POOLS), "The tokens whose mean is projected."),
        "directions": Key(
            "mean",
            Choice(("mean", "sum")),
            "The reduction over the losses of the views. The sum, as in google-research/simclr, "
            "is the mean times the number of views.",
        ),
        "supervised": Key(
            False,
            Switch(),
            "Whether images of the same label are positives of each other (SupCon).",
        ),
        "block": Key(
            None,
            Whole(1, 2**31 - 1),
            "The number of keys compared at a time; by default as memory allows.",
        ),
    },
    head=projector,
    head_name="projector",
    relates_rows=True,
    min_views=2,  # a row needs a positive
    min_images=2,  # and a negative
    needs_labels=lambda settings: settings.supervised,
)
