"""A penalty on the statistical dependence between embedding dimensions."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from can_jax.objectives.base import Arrays, Loss, Metrics, Objective, at_least_float32
from can_jax.objectives.views import off_diagonal, products
from can_jax.utils.settings import Choice, Key, Number

FORMS = ("decorrelation", "total_correlation")


def correlations(rows: Float[Array, "rows width"]) -> Float[Array, "width width"]:
    """Return the correlation matrix of the embedding dimensions, with 1e-5 added to each
    variance."""
    centered = rows - rows.mean(axis=0)
    deviations = jnp.sqrt(jnp.mean(jnp.square(centered), axis=0) + 1e-5)
    normed = centered / deviations
    return products(normed, normed) / rows.shape[0]


def loss(arrays: Arrays, form: str, shrinkage: float) -> tuple[Loss, Metrics]:
    """Compute a penalty on correlated dimensions of the pooled embeddings of the global batch.

    - ``decorrelation``: the mean squared off-diagonal entry of the correlation matrix. DeCov (arXiv
      1511.06068) uses the covariance matrix instead.

    - ``total_correlation``: ``-log det((1 - shrinkage) R + shrinkage I) / (2 width)``, where ``R``
      is the correlation matrix. The value is the total correlation per dimension of a Gaussian with
      the shrunk correlation matrix. The beta-TCVAE (arXiv 1802.04942) penalizes the total
      correlation of a latent code.

    Both penalties are 0 for uncorrelated dimensions.

    Args:
        arrays: The network outputs and targets of one training step.
        form: The penalty, ``decorrelation`` or ``total_correlation``.
        shrinkage: The weight of the identity matrix in ``total_correlation``, in (0, 1). A positive
            ``shrinkage`` keeps the determinant positive even if the batch has fewer rows than
            dimensions.
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
        "form": Key("decorrelation", Choice(FORMS), "The measure of dependence to penalize."),
        "shrinkage": Key(
            0.1,
            Number(1e-4, below=1),
            "For total_correlation: the weight s of the identity matrix I in (1 - s) R + s I, "
            "which replaces the correlation matrix R.",
        ),
    },
    relates_rows=True,
    min_images=2,
)
