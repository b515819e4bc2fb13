"""InfoNCE over the global batch, and its supervised form.

Every device holds some rows of the batch and is given all of them as keys. The matrix of their
similarities is looked at in blocks of keys, forward and backward, so memory grows with the batch
and not with its square. The backward pass is written out: it needs no sum over devices, since what
a row receives as somebody's key follows from that row's own normaliser, one number.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from can_jax.distributed.mesh import pin_rows, replicate, row_shards
from can_jax.objectives.base import Arrays, Loss, Metrics, Objective, at_least_float32

# Similarities that a device looks at together, unless a block of keys is set: 128 MiB in float32.
BLOCK_ENTRIES = 2**25


class Rows(NamedTuple):
    """Per row of a block of rows or keys: what decides which pairs are which."""

    number: Int[Array, " rows"]
    label: Int[Array, " rows"] | None  # None: only the views of an image are alike


class Seen(NamedTuple):
    """What rows know of the keys they have been compared with."""

    normalizer: Float[Array, " rows"]  # log of the sum of exp(similarity / temperature)
    positives: Int[Array, " rows"]
    positive_sum: Float[Array, " rows"]  # of similarities
    pair_sum: Float[Array, " rows"]  # likewise, of views of the same image
    other_sum: Float[Array, " rows"]  # likewise, of different images
    best: Float[Array, " rows"]  # the largest similarity
    nearest: Int[Array, " rows"]  # the key that has it


def normalize(x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Return vectors of length 1 along the last axis.

    One shorter than 1e-12 becomes zero, and its gradient is zero: that of the division would be
    beyond 1e12, and spoil the optimizer's second moments for many steps.
    """
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    long = squares > 1e-24
    # The inner choice keeps the derivative of the root finite where the outer one drops it.
    return jnp.where(long, x * jax.lax.rsqrt(jnp.where(long, squares, 1.0)), 0.0)


def block_size(rows: int, shards: int) -> int:
    """Keys compared at a time, such that a device's share of the rows, ``1 / shards`` of them,
    makes at most `BLOCK_ENTRIES` similarities."""
    return max(1, min(rows, BLOCK_ENTRIES * shards // rows))


def similarities(
    rows: Float[Array, "rows width"], keys: Float[Array, "keys width"]
) -> Float[Array, "rows keys"]:
    """Products of all pairs in full precision; the rows stay on their devices."""
    return pin_rows(jnp.matmul(rows, keys.T, precision=jax.lax.Precision.HIGHEST))


class Pairs(NamedTuple):
    """Which keys are what to which rows."""

    itself: Bool[Array, "rows keys"]  # or padding: to be left out
    same_image: Bool[Array, "rows keys"]
    positive: Bool[Array, "rows keys"]


def pairs(rows: Rows, keys: Rows, views: int) -> Pairs:
    """Compare every row with every key. Keys beyond the number of rows are padding."""
    itself = rows.number[:, None] == keys.number
    padding = keys.number >= rows.number.shape[0]
    same_image = (rows.number[:, None] // views == keys.number // views) & ~itself & ~padding
    positive = same_image
    if rows.label is not None:
        assert keys.label is not None
        same_label = (rows.label[:, None] == keys.label) & (keys.label >= 0) & ~itself & ~padding
        positive |= same_label
    return Pairs(itself | padding, same_image, positive)


def blocks(x: Array, size: int) -> Array:
    """Rows, gathered on every device and cut into blocks; the last is filled up with zeros."""
    count = -(-x.shape[0] // size)
    padding = [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(replicate(x), padding).reshape(count, size, *x.shape[1:])


def key_blocks(rows: Rows, size: int) -> Rows:
    """The rows as keys, cut into blocks as by `blocks`."""
    count = -(-rows.number.shape[0] // size)
    number = jnp.arange(count * size).reshape(count, size)
    return Rows(number, None if rows.label is None else blocks(rows.label, size))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def contrast(
    unit: Float[Array, "rows width"],
    label: Int[Array, " rows"] | None,
    views: int,
    temperature: float,
    block: int,
) -> tuple[Loss, Seen]:
    """Mean over rows of the mean over their positives of ``-log softmax``, a row itself left out.

    With one positive a row this is InfoNCE (arXiv 2002.05709, eq. 1); with several it is SupCon's
    ``L_out`` (arXiv 2004.11362, eq. 2).

    Args:
        unit: embeddings of length 1, an image's views next to each other.
        label: of each row, -1 where unknown; rows of one label are positives of each other.
        views: rows of an image.
        temperature: that divides the similarities.
        block: keys compared at a time.

    Returns:
        The loss, and what was seen on the way. Only the loss has a gradient.
    """
    return _forward(unit, label, views, temperature, block)[0]


def _forward(
    unit: Array, label: Array | None, views: int, temperature: float, block: int
) -> tuple[tuple[Loss, Seen], Any]:
    rows = Rows(jnp.arange(unit.shape[0]), label)
    keys = blocks(unit, block)
    zero = jnp.zeros_like(unit, shape=unit.shape[0])
    none = jnp.zeros_like(rows.number)
    start = Seen(zero - jnp.inf, none, zero, zero, zero, zero - jnp.inf, none)

    def compare(seen: Seen, these: tuple[Array, Rows]) -> tuple[Seen, None]:
        similarity = similarities(unit, these[0])
        pair = pairs(rows, these[1], views)
        others = jnp.where(pair.itself, -jnp.inf, similarity)
        logits = others / temperature
        best, at = others.max(axis=1), others.argmax(axis=1)
        apart = ~pair.same_image & ~pair.itself
        return Seen(
            normalizer=jnp.logaddexp(seen.normalizer, jax.nn.logsumexp(logits, axis=1)),
            positives=seen.positives + pair.positive.sum(axis=1, dtype=none.dtype),
            positive_sum=seen.positive_sum + jnp.sum(similarity, axis=1, where=pair.positive),
            pair_sum=seen.pair_sum + jnp.sum(similarity, axis=1, where=pair.same_image),
            other_sum=seen.other_sum + jnp.sum(similarity, axis=1, where=apart),
            best=jnp.maximum(seen.best, best),
            nearest=jnp.where(best > seen.best, these[1].number[at], seen.nearest),
        ), None

    seen, _ = jax.lax.scan(compare, jax.tree.map(pin_rows, start), (keys, key_blocks(rows, block)))
    chosen = seen.positive_sum / temperature / seen.positives
    loss = jnp.mean(seen.normalizer - chosen)
    return (loss, seen), (unit, keys, label, seen.normalizer, seen.positives)


def _backward(views: int, temperature: float, block: int, saved: Any, cotangent: Any) -> Any:
    """A row is pulled by every pair it is in, once as the row and once as the key: the gradient of
    ``unit[i]`` is ``sum_j (g[i, j] + g[j, i]) unit[j]`` with
    ``g[i, j] = (softmax[i, j] - positive[i, j] / positives[i]) / (temperature * rows)``."""
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
    total, _ = jax.lax.scan(pull, pin_rows(jnp.zeros_like(unit)), gathered)
    return total * (cotangent[0] / (temperature * unit.shape[0])), None


contrast.defvjp(_forward, _backward)


def loss(
    arrays: Arrays, temperature: float, directions: str, supervised: bool, block: int | None
) -> tuple[Loss, Metrics]:
    """InfoNCE, or SupCon if ``supervised``; logged beside it how well the views are told apart.

    ``contrastive/top1`` is the share of rows whose nearest other row is a view of the same image.

    Args:
        arrays: of the step; an image with label -1 is of a class of its own.
        temperature: that divides the similarities.
        directions: `mean` over all rows, or `sum` over the views of the mean over their images,
            as in google-research/simclr.
        supervised: whether rows of one label are positives of each other.
        block: keys compared at a time; by default as many as `block_size` says.
    """
    assert arrays.projection is not None
    images, views, width = arrays.projection.shape
    count = images * views
    unit = pin_rows(normalize(at_least_float32(arrays.projection)).reshape(count, width))
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
    reads=frozenset({"projection", "labels"}),
    loss=loss,
    settings=("temperature", "directions", "supervised", "block"),
    relates_rows=True,
    min_views=2,  # a positive
    min_images=2,  # a negative
)
