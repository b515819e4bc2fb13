"""A dense contrastive loss on patch tokens that are matched between views (DenseCL, arXiv
2011.09157).

Each visible patch token of a view is a query. The positive of a query is the most similar token of
another view of the image, compared by encoder features. The negatives of a query are one mean token
per view of every other image in the global batch. DenseCL instead takes the negatives from a queue,
which a momentum encoder fills.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from can_jax.distributed.mesh import constrain_batch_sharding
from can_jax.models.heads import Projector
from can_jax.objectives.base import Arrays, Loss, Metrics, Objective, at_least_float32
from can_jax.objectives.negatives import LOWEST, LogSum
from can_jax.objectives.rows import BLOCK, blocks, keys_at_a_time, normalize, similarities
from can_jax.utils.settings import Key, Number, Whole

Tokens = Float[Array, "images views patches width"]
Projected = Float[Array, "images views patches outputs"]


def head(config: Any, width: int, **options: Any) -> Projector:
    """Build the projector of patch tokens, which has two linear layers with a ReLU between them."""
    settings = config.objective.dense
    return Projector(width, settings.hidden, settings.outputs, 2, False, False, **options)


def matched(
    features: Tokens, unit: Projected, view: int, other: int
) -> Float[Array, "images patches"]:
    """Return the similarity of each token of a view to its match in another view.

    The match of a token is the token of the other view with the most similar encoder feature. The
    choice of the match is not differentiated.

    Args:
        features: The encoder's patch tokens, L2-normalized, by which tokens are matched.
        unit: The projected patch tokens, L2-normalized, whose similarities are returned.
        view: The index of the view that holds the queries.
        other: The index of the view that holds the matches.
    """
    alike = jnp.einsum(
        "ipw,iqw->ipq", features[:, view], features[:, other], precision=jax.lax.Precision.HIGHEST
    )
    nearest = alike.argmax(axis=-1)
    positives = jnp.take_along_axis(unit[:, other], nearest[..., None], axis=1)
    return jnp.sum(unit[:, view] * positives, axis=-1)


def loss(arrays: Arrays, head: Any, temperature: float, block: int | None) -> tuple[Loss, Metrics]:
    """Compute ``-log(exp(s+ / t) / (exp(s+ / t) + sum_n exp(s_n / t)))``, averaged over all queries
    and over the other views of each query's image (eq. 2).

    ``s+`` is the cosine similarity of a query to its positive in another view, and ``s_n`` is the
    similarity to its n-th negative. The metric ``dense/top1`` is the fraction of queries that are
    more similar to their positive than to any negative.

    Args:
        arrays: The network outputs and targets of one training step.
        head: The projector, called once on all visible patch tokens of the global batch.
        temperature: The positive number by which similarities are divided before the softmax.
        block: The number of keys per block of the similarity matrix; None selects the default,
            `can_jax.objectives.rows.block_size`.
    """
    assert arrays.tokens is not None
    tokens = arrays.tokens[:, :, 1:]
    images, views, patches, width = tokens.shape
    projected = at_least_float32(head(tokens.reshape(-1, width), train=True))
    projected = constrain_batch_sharding(projected.reshape(images, views, patches, -1))
    unit = normalize(projected)
    keys = normalize(projected.mean(axis=2)).reshape(images * views, -1)
    features = normalize(at_least_float32(jax.lax.stop_gradient(tokens)))
    queries = constrain_batch_sharding(unit.reshape(images * views * patches, -1))
    image = jnp.arange(len(queries)) // (views * patches)
    size = min(keys_at_a_time(block, len(queries)), len(keys))

    @jax.checkpoint
    def compare(seen: tuple[LogSum, Array], these: tuple[Array, Array]) -> tuple[Any, None]:
        similarity = similarities(queries, these[0])
        negative = (image[:, None] != these[1] // views) & (these[1] < len(keys))
        total = seen[0].add(similarity / temperature, negative)
        fixed = jnp.where(negative, jax.lax.stop_gradient(similarity), LOWEST)
        return (total, jnp.maximum(seen[1], fixed.max(axis=1))), None

    zero = jnp.zeros_like(queries, shape=len(queries))
    start = jax.tree.map(constrain_batch_sharding, (LogSum(zero + LOWEST, zero), zero + LOWEST))
    cut = blocks(keys, size)
    index = jnp.arange(cut.shape[0] * size).reshape(-1, size)
    (negatives, nearest), _ = jax.lax.scan(compare, start, (cut, index))
    log_negative, nearest = (
        array.reshape(images, views, patches) for array in (negatives.log(), nearest)
    )
    losses, right, similarity = [], [], []
    for view in range(views):
        for other in range(views):
            if view != other:
                positive = matched(features, unit, view, other)
                scaled = positive / temperature
                losses.append(jnp.mean(jnp.logaddexp(scaled, log_negative[:, view]) - scaled))
                right.append(jnp.mean(positive > nearest[:, view]))
                similarity.append(positive.mean())
    mean = {"dense/top1": right, "dense/positive_similarity": similarity}
    metrics = {name: jnp.stack(values).mean() for name, values in mean.items()}
    return jnp.stack(losses).mean(), metrics


OBJECTIVE = Objective(
    reads=frozenset({"tokens"}),
    loss=loss,
    keys={
        "temperature": Key(
            0.2, Number(1e-3, 100), "The temperature, by which cosine similarities are divided."
        ),
        "hidden": Key(2048, Whole(1, 65536), "The width of the projector's hidden layer."),
        "outputs": Key(128, Whole(2, 65536), "The width of the projected tokens."),
        "block": BLOCK,
    },
    head=head,
    relates_rows=True,
    min_views=2,
    min_images=2,
)
