"""A penalty on dependent dimensions of the embedding: decorrelation, or total correlation."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from can_jax.objectives.base import Arrays, Loss, Metrics, Objective, at_least_float32
from can_jax.objectives.views import off_diagonal, products
from can_jax.utils.settings import Choice, Key, Number

FORMS = ("decorrelation", "total_correlation")


def correlations(rows: Float[Array, "rows width"]) -> Float[Array, "width width"]:
    """Return the correlations of the dimensions; each variance is increased by 1e-5."""
    centered = rows - rows.mean(axis=0)
    deviations = jnp.sqrt(jnp.mean(jnp.square(centered), axis=0) + 1e-5)
    normed = centered / deviations
    return products(normed, normed) / rows.shape[0]


def loss(arrays: Arrays, form: str, shrinkage: float) -> tuple[Loss, Metrics]:
    """Compute the penalty on the pooled embeddings of all rows.

    - ``decorrelation``: the mean squared correlation of two different dimensions (DeCov, arXiv
      1511.06068, on correlations).
    - ``total_correlation``: the total correlation of a Gaussian with these correlations ``R``,
      ``-log det((1 - shrinkage) R + shrinkage I) / 2``, per dimension. It is 0 for independent
      dimensions. beta-TCVAE (arXiv 1802.04942) penalizes the same quantity of a latent code.

    Args:
        arrays: The outputs of the network and the targets of a step.
        form: The form, of `FORMS`.
        shrinkage: The weight of the identity, which bounds the determinant of a batch with fewer
            rows than dimensions.
    """
    assert arrays.pooled is not None
    width = arrays.pooled.shape[-1]
    matrix = correlations(at_least_float32(arrays.pooled).reshape(-1, width))
    mean_square = jnp.sum(jnp.square(off_diagonal(matrix))) / max(width * (width - 1), 1)
    metrics = {"disentangle/mean_square_correlation": mean_square}
    if form == "decorrelation":
        return mean_square, metrics
    shrunk = (1 - shrinkage) * off_diagonal(matrix) + jnp.eye(width, dtype=matrix.dtype)
    return -jnp.linalg.slogdet(shrunk)[1] / (2 * width), metrics


OBJECTIVE = Objective(
    reads=frozenset({"pooled"}),
    loss=loss,
    keys={
        "form": Key("decorrelation", Choice(FORMS), "The quantity to penalize."),
        "shrinkage": Key(
            0.1,
            Number(1e-4, 1),
            "The weight of the identity in the correlations of `total_correlation`.",
        ),
    },
    relates_rows=True,
    min_images=2,
)
