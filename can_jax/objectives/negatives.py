"""Contrastive losses with decoupled, hard, debiased or excluded negatives.

`contrast_corrected` computes ``log D - s+ / t``, averaged over the positives of each row and then
over all rows. The symbol ``s+`` is the similarity to a positive, ``t`` is the temperature, and
``D`` is the softmax denominator. The denominator ``D`` depends on the options:

- Default: ``D = P + G``, where ``P`` is the sum of ``exp(s / t)`` over positives and ``G`` the sum
  over negatives. With the default options, the loss equals
  `can_jax.objectives.contrastive.contrast`.

- Decoupled (DCL, arXiv 2110.06848, eq. 4): ``D = G``.

- Hard (arXiv 2010.04592, eq. 4): the terms of ``G`` have weights with mean 1, proportional to
  ``exp(b s / t)``. For a hardness ``b`` of 0, all negatives have the same weight.

- Debiased (arXiv 2007.00224, eq. 8): a fraction ``p`` of the ``N`` negatives is assumed to have the
  query's class. The sum ``G`` becomes ``max((G - p N mean(exp(s+ / t))) / (1 - p), N exp(-1 /
  t))``.

- Excluded: ``G`` and ``N`` leave out duplicates of the query's image, and negatives above a
  similarity threshold.

The loss scans over blocks of keys with `jax.checkpoint`, which recomputes the similarities in the
backward pass. Memory therefore grows linearly with the batch size.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from can_jax.distributed.mesh import constrain_batch_sharding
from can_jax.objectives.base import Loss
from can_jax.objectives.rows import (
    Rows,
    RowStatistics,
    blocks,
    key_blocks,
    pairs,
    similarities,
)

MOST = 40.0  # the largest exponent of a share; that of the largest term is 0
LOWEST = -1e30  # stands for the log of an empty sum, -inf, whose differences would be nan


class LogSum(NamedTuple):
    """A log-sum-exp that is accumulated over blocks of keys, with the value ``shift + log(total)``.

    Attributes:
        shift: The largest exponent so far; its gradient is stopped.
        total: The sum of ``exp(exponent - shift)`` over the exponents so far.
    """

    shift: Float[Array, " rows"]
    total: Float[Array, " rows"]

    def add(
        self, exponents: Float[Array, "rows keys"], where: Bool[Array, "rows keys"]
    ) -> "LogSum":
        """Return this log-sum-exp extended by the exponents for which ``where`` is True."""
        exponents = jnp.where(where, exponents, LOWEST)
        shift = jnp.maximum(self.shift, jax.lax.stop_gradient(exponents.max(axis=1)))
        terms = jnp.where(where, jnp.exp(exponents - shift[:, None]), 0.0)
        return LogSum(shift, self.total * jnp.exp(self.shift - shift) + terms.sum(axis=1))

    def log(self) -> Float[Array, " rows"]:
        """Return the logarithm of the accumulated sum, or `LOWEST` if the sum is empty."""
        some = self.total > 0
        return jnp.where(some, self.shift + jnp.log(jnp.where(some, self.total, 1.0)), LOWEST)


class _Sums(NamedTuple):
    """The per-row statistics that the scan over blocks of keys accumulates."""

    seen: RowStatistics
    positive: LogSum  # of s / t over positives
    negative: LogSum  # of (1 + b) s / t over negatives
    weight: LogSum  # of b s / t over negatives
    negatives: Int[Array, " rows"]
    excluded: Int[Array, " rows"]


def contrast_corrected(
    unit: Float[Array, "rows width"],
    label: Int[Array, " rows"] | None,
    views: int,
    temperature: float,
    block: int,
    *,
    decoupled: bool,
    positive_prior: float,
    hardness: float,
    exclude_above: float | None,
    content: UInt32[Array, " rows"] | None = None,
) -> tuple[Loss, RowStatistics, Float[Array, ""]]:
    """Compute a contrastive loss with modified negatives over the rows of the global batch.

    The module docstring defines the loss. If all negatives of a row are excluded, the denominator
    of the row holds only its positives. With ``decoupled``, a row without negatives has loss 0.

    Args:
        unit: L2-normalized embeddings, in which the views of an image are adjacent rows.
        label: The class label of each row, -1 if unknown. Rows with the same known label are
            positives of each other. If ``label`` is None, only the views of one image are positives
            of each other.
        views: The number of augmented views per image.
        temperature: The positive number by which similarities are divided before the softmax.
        block: The number of keys per block of the similarity matrix.
        decoupled: Whether to exclude the positives from the softmax denominator.
        positive_prior: The assumed fraction of negatives that have the query's class, in [0, 1).
        hardness: The strength with which negatives similar to the query are weighted more; 0 gives
            all negatives the same weight.
        exclude_above: The cosine similarity to the query above which a negative is excluded; None
            excludes no negatives.
        content: An ID of the image content of each row; None excludes no duplicates. Negatives with
            the content ID of the query are excluded as duplicates.

    Returns:
        The mean loss over rows, the similarity statistics of each row, and the mean over rows of
        the fraction of excluded negatives.
    """
    rows = Rows(jnp.arange(unit.shape[0]), label)
    zero = jnp.zeros_like(unit, shape=unit.shape[0])
    none = jnp.zeros_like(rows.position)
    empty = LogSum(zero + LOWEST, zero)

    @jax.checkpoint
    def compare(sums: _Sums, these: tuple[Array, Rows, Any]) -> tuple[_Sums, None]:
        similarity = similarities(unit, these[0])
        pair = pairs(rows, these[1], views)
        negative = ~pair.positive & ~pair.itself
        excluded = jnp.zeros_like(negative)
        if exclude_above is not None:
            excluded |= negative & (similarity > exclude_above)
        if content is not None:
            excluded |= negative & (content[:, None] == these[2])
        negative &= ~excluded
        scaled = similarity / temperature
        return _Sums(
            seen=sums.seen.add(similarity, pair, these[1].position),
            positive=sums.positive.add(scaled, pair.positive),
            negative=sums.negative.add((1 + hardness) * scaled, negative),
            weight=sums.weight.add(hardness * scaled, negative),
            negatives=sums.negatives + negative.sum(axis=1, dtype=none.dtype),
            excluded=sums.excluded + excluded.sum(axis=1, dtype=none.dtype),
        ), None

    start = _Sums(RowStatistics.empty(unit), empty, empty, empty, none, none)
    sums, _ = jax.lax.scan(
        compare,
        jax.tree.map(constrain_batch_sharding, start),
        (
            blocks(unit, block),
            key_blocks(rows, block),
            None if content is None else blocks(content, block),
        ),
    )
    some = sums.negatives > 0
    count = jnp.maximum(sums.negatives, 1).astype(unit.dtype)
    positives = sums.seen.positives.astype(unit.dtype)
    log_positive = sums.positive.log()
    log_negative = jnp.log(count) + sums.negative.log() - sums.weight.log()
    if positive_prior:
        # All terms are divided by the largest, so that none overflows. A share far above it makes
        # the difference negative, and the floor, which can underflow, is taken as a logarithm.
        log_mean = log_positive - jnp.log(positives)
        log_floor = jnp.log(count) - 1 / temperature
        top = jax.lax.stop_gradient(jnp.maximum(log_negative, log_floor))
        exponent = jnp.minimum(jnp.where(some, log_mean - top, 0.0), MOST)
        share = positive_prior * count * jnp.exp(exponent)
        corrected = (jnp.exp(log_negative - top) - share) / (1 - positive_prior)
        above = corrected > jnp.exp(log_floor - top)
        log_corrected = top + jnp.log(jnp.where(above, corrected, 1.0))
        log_negative = jnp.where(above, log_corrected, log_floor)
    log_negative = jnp.where(some, log_negative, LOWEST)
    denominator = log_negative if decoupled else jnp.logaddexp(log_negative, log_positive)
    losses = denominator - sums.seen.positive_sum / temperature / positives
    if decoupled:
        losses = jnp.where(some, losses, 0.0)
    excluded = sums.excluded / jnp.maximum(sums.negatives + sums.excluded, 1)
    return losses.mean(), sums.seen._replace(normalizer=denominator), excluded.mean()
