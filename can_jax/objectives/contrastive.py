"""InfoNCE over the global batch, and its supervised form."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from can_jax.objectives.base import Arrays, Loss, Metrics, Objective, at_least_float32


def normalize(x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Vectors of length 1 along the last axis; a zero vector stays zero, with gradient zero."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def similarities(projection: Float[Array, "images views width"]) -> Float[Array, "rows rows"]:
    """Cosine of every pair of rows. Under a mesh the rows are those of the global batch."""
    rows = normalize(at_least_float32(projection)).reshape(-1, projection.shape[-1])
    return jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)


def contrast(
    similarity: Float[Array, "rows rows"], positives: Bool[Array, "rows rows"], temperature: float
) -> Loss:
    """Mean over rows of the mean over their positives of ``-log softmax``, a row itself left out.

    With one positive a row this is InfoNCE (arXiv 2002.05709, eq. 1); with several it is SupCon's
    ``L_out`` (arXiv 2004.11362, eq. 2).
    """
    itself = jnp.eye(similarity.shape[0], dtype=bool)
    logits = jnp.where(itself, -jnp.inf, similarity / temperature)
    normalizer = jax.nn.logsumexp(logits, axis=1)
    chosen = jnp.sum(jnp.where(positives, logits, 0.0), axis=1) / positives.sum(axis=1)
    return jnp.mean(normalizer - chosen)


def same_image(images: int, views: int) -> Bool[Array, "rows rows"]:
    """True where two different rows are views of one image."""
    image = jnp.arange(images * views) // views
    return (image[:, None] == image) & ~jnp.eye(images * views, dtype=bool)


def same_class(labels: Int[Array, " images"], views: int) -> Bool[Array, "rows rows"]:
    """True where two different rows share a label, or are views of one image."""
    label = jnp.repeat(labels, views)
    alike = (label[:, None] == label) & (label >= 0) & ~jnp.eye(label.size, dtype=bool)
    return alike | same_image(labels.size, views)


def info_nce(projection: Float[Array, "images views width"], temperature: float) -> Loss:
    """InfoNCE: a row's positive is its image's other view, all other rows are negatives."""
    return contrast(similarities(projection), same_image(*projection.shape[:2]), temperature)


def sup_con(
    projection: Float[Array, "images views width"],
    labels: Int[Array, " images"],
    temperature: float,
) -> Loss:
    """Supervised contrastive loss: positives are all rows of the same class.

    An image with label -1 is of a class of its own, so without labels this is `info_nce`.
    """
    positives = same_class(labels, projection.shape[1])
    return contrast(similarities(projection), positives, temperature)


def loss(arrays: Arrays, temperature: float, supervised: bool) -> tuple[Loss, Metrics]:
    """InfoNCE, or SupCon if ``supervised``; logged beside it how well the views are told apart.

    ``contrastive/top1`` is the share of rows whose nearest other row is a view of the same image.
    """
    assert arrays.projection is not None
    images, views, _ = arrays.projection.shape
    similarity = similarities(arrays.projection)
    pairs = same_image(images, views)
    positives = pairs
    if supervised:
        assert arrays.labels is not None
        positives = same_class(arrays.labels, views)
    itself = jnp.eye(images * views, dtype=bool)
    nearest = jnp.argmax(jnp.where(itself, -jnp.inf, similarity), axis=1)
    metrics = {
        "contrastive/top1": jnp.mean(nearest // views == jnp.arange(images * views) // views),
        "contrastive/positive_similarity": jnp.mean(similarity, where=pairs),
        "contrastive/negative_similarity": jnp.mean(similarity, where=~pairs & ~itself),
    }
    return contrast(similarity, positives, temperature), metrics


OBJECTIVE = Objective(frozenset({"projection"}), loss, settings=("temperature", "supervised"))
