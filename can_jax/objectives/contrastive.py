"""The InfoNCE loss over the global batch, and its supervised form (SupCon).

A row is the embedding of one view of an image. Every device holds a shard of the embeddings as
queries, and gathers all embeddings as keys. The forward and backward passes compute the similarity
matrix in blocks of keys, so memory grows linearly with the batch size.

The custom backward pass needs no reduction over devices. The embeddings of a device are also keys
of all queries. To compute the gradient with respect to these keys, the device gathers all queries.
The device also gathers the log softmax denominator and the number of positives of each query.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from can_jax.distributed.mesh import constrain_batch_sharding
from can_jax.models.can import POOLS
from can_jax.objectives.base import Arrays, Loss, Metrics, Objective
from can_jax.objectives.negatives import contrast_corrected
from can_jax.objectives.rows import (
    BLOCK,
    Rows,
    RowStatistics,
    blocks,
    key_blocks,
    keys_at_a_time,
    on_sphere,
    pairs,
    projected,
    projector,
    similarities,
)
from can_jax.utils.errors import UserError
from can_jax.utils.settings import Choice, Key, Number, Switch


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def contrast(
    unit: Float[Array, "rows width"],
    label: Int[Array, " rows"] | None,
    views: int,
    temperature: float,
    block: int,
) -> tuple[Loss, RowStatistics]:
    """Compute the InfoNCE or SupCon loss: ``-log softmax``, averaged over the positives of each row
    and then over all rows.

    The softmax of a row runs over all other rows of the global batch. With one positive per row,
    the loss is InfoNCE (arXiv 2002.05709, eq. 1). With several positives per row, the loss is
    SupCon's ``L_out`` (arXiv 2004.11362, eq. 2).

    Args:
        unit: L2-normalized embeddings, in which the views of an image are adjacent rows.
        label: The class label of each row, -1 if unknown; None for InfoNCE. Rows with the same
            known label are positives of each other.
        views: The number of augmented views per image.
        temperature: The positive number by which similarities are divided before the softmax.
        block: The number of keys per block of the similarity matrix.

    Returns:
        The loss, and the similarity statistics of each row. Only the loss is differentiable.
    """
    return _forward(unit, label, views, temperature, block)[0]


def _forward(
    unit: Array, label: Array | None, views: int, temperature: float, block: int
) -> tuple[tuple[Loss, RowStatistics], Any]:
    rows = Rows(jnp.arange(unit.shape[0]), label)
    keys = blocks(unit, block)
    start = RowStatistics.empty(unit)

    def compare(seen: RowStatistics, these: tuple[Array, Rows]) -> tuple[RowStatistics, None]:
        similarity = similarities(unit, these[0])
        pair = pairs(rows, these[1], views)
        logits = jnp.where(pair.itself, -jnp.inf, similarity) / temperature
        normalizer = jnp.logaddexp(seen.normalizer, jax.nn.logsumexp(logits, axis=1))
        seen = seen.add(similarity, pair, these[1].position)
        return seen._replace(normalizer=normalizer), None

    seen, _ = jax.lax.scan(
        compare, jax.tree.map(constrain_batch_sharding, start), (keys, key_blocks(rows, block))
    )
    chosen = seen.positive_sum / temperature / seen.positives
    loss = jnp.mean(seen.normalizer - chosen)
    return (loss, seen), (unit, keys, label, seen.normalizer, seen.positives)


def _backward(views: int, temperature: float, block: int, saved: Any, cotangent: Any) -> Any:
    """Compute the gradient of the loss with respect to ``unit``.

    Every pair of rows contributes twice, since each row of the pair is once the query and once the
    key. The gradient with respect to ``unit[i]`` is ``sum_j (g[i, j] + g[j, i]) unit[j]``. The
    derivative with respect to the similarity of query i and key j, ``g[i, j]``, is ``(softmax[i, j]
    - positive[i, j] / positives[i]) / (temperature * rows)``.
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


def loss(
    arrays: Arrays,
    head: Callable[..., Float[Array, "rows outputs"]],
    temperature: float,
    directions: str,
    supervised: bool,
    block: int | None,
    decoupled: bool = False,
    positive_prior: float = 0.0,
    hardness: float = 0.0,
    exclude_above: float | None = None,
    exclude_copies: bool = False,
) -> tuple[Loss, Metrics]:
    """Compute InfoNCE, or SupCon if ``supervised``, and similarity metrics.

    ``contrastive/top1`` is the fraction of rows whose most similar other row is a view of the same
    image. The arguments from ``decoupled`` to ``exclude_copies`` change the softmax denominator;
    `can_jax.objectives.negatives` contains their formulas. If the arguments from ``decoupled`` to
    ``exclude_copies`` have their default values, the plain InfoNCE or SupCon loss is compiled.

    Args:
        arrays: The network outputs and targets of one training step. For SupCon, an image with
            label -1 has only its own views as positives.
        head: The projection head, called once on the pooled embeddings of all views of the global
            batch.
        temperature: The positive number by which similarities are divided before the softmax.
        directions: The reduction over views. ``mean`` averages the loss over all rows. ``sum``
            averages the loss over images and sums it over views, as in google-research/simclr.
        supervised: Whether all views of images with the same class label are positives of each
            other (SupCon).
        block: The number of keys per block of the similarity matrix; None selects the default,
            `can_jax.objectives.rows.block_size`.
        decoupled: Whether to exclude the positives from the softmax denominator.
        positive_prior: The assumed fraction of negatives that have the query's class, in [0, 1).
        hardness: The strength with which negatives similar to the query are weighted more; 0 gives
            all negatives the same weight.
        exclude_above: Negatives whose cosine similarity to the query exceeds this value are
            excluded; None excludes no negatives.
        exclude_copies: Whether to exclude duplicates of the query's image from the negatives.
    """
    assert arrays.pooled is not None
    images, views, _ = arrays.pooled.shape
    count = images * views
    unit = on_sphere(projected(arrays, head))
    label = None
    if supervised:
        assert arrays.labels is not None
        label = jnp.repeat(arrays.labels, views)
    size = keys_at_a_time(block, count)
    metrics: Metrics = {}
    content = None
    if exclude_copies:
        assert arrays.contents is not None
        content = jnp.repeat(arrays.contents, views)
    excludes = exclude_copies or exclude_above is not None
    if decoupled or positive_prior or hardness or excludes:
        value, seen, excluded = contrast_corrected(
            unit, label, views, temperature, size,
            decoupled=decoupled, positive_prior=positive_prior, hardness=hardness,
            exclude_above=exclude_above, content=content,
        )  # fmt: skip
        if excludes:
            metrics["contrastive/excluded_negatives"] = excluded
    else:
        value, seen = contrast(unit, label, views, temperature, size)
    metrics |= {
        "contrastive/top1": jnp.mean(seen.nearest // views == jnp.arange(count) // views),
        "contrastive/positive_similarity": seen.pair_sum.mean() / (views - 1),
        "contrastive/negative_similarity": seen.other_sum.mean() / (count - views),
    }
    return value * views if directions == "sum" else value, metrics


def check(config: Any) -> None:
    """Check that duplicate images can be recognized if ``exclude_copies`` is set.

    Raises:
        UserError: ``exclude_copies`` is set for streamed data, whose examples have no index.
    """
    if config.objective.contrastive.exclude_copies and config.data.streaming:
        raise UserError(
            "config.objective.contrastive.exclude_copies=True: streamed examples have no index, so "
            "copies cannot be recognized; set data.streaming=False, or use exclude_above instead"
        )


OBJECTIVE = Objective(
    reads=frozenset({"pooled", "labels", "contents"}),
    loss=loss,
    weight=0.03,
    keys={
        "temperature": Key(
            0.1, Number(1e-3, 100), "The temperature, by which cosine similarities are divided."
        ),
        "pool": Key(
            "patches",
            Choice(POOLS),
            "The encoder tokens whose mean is the input of the projector: patches, all or class.",
        ),
        "directions": Key(
            "mean",
            Choice(("mean", "sum")),
            "The reduction of the loss over views: mean, or sum as in google-research/simclr. The "
            "sum is the mean times the number of views.",
        ),
        "supervised": Key(
            False,
            Switch(),
            "Whether images with the same class label are positives of each other (SupCon).",
        ),
        "block": BLOCK,
        "decoupled": Key(
            False,
            Switch(),
            "Whether to exclude the positives from the denominator (DCL, arXiv 2110.06848).",
        ),
        "positive_prior": Key(
            0.0,
            Number(0, below=1),
            "The assumed fraction of negatives that have the query's class. The loss corrects "
            "its denominator by this fraction (debiased contrastive loss, arXiv 2007.00224).",
        ),
        "hardness": Key(
            0.0,
            Number(0, 100),
            "The strength with which negatives similar to the query are weighted more (hard "
            "negative sampling, arXiv 2010.04592); 0 gives all negatives the same weight.",
        ),
        "exclude_above": Key(
            None,
            Number(-1, 1),
            "Negatives whose cosine similarity to the query exceeds this value are excluded; by "
            "default, no negatives are excluded.",
        ),
        "exclude_copies": Key(
            False,
            Switch(),
            "Whether to exclude copies of the query's image from the negatives: the same example, "
            "or one with the same content digest in the dataset index.",
        ),
    },
    head=projector,
    head_name="projector",
    relates_rows=True,
    min_views=2,  # a row needs a positive
    min_images=2,  # and a negative
    needs_labels=lambda settings: settings.supervised,
    check=check,
)
