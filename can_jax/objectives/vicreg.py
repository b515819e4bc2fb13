"""The VICReg loss: variance, invariance and covariance terms (arXiv 2105.04906).

The VICReg paper uses ``25 * invariance + 25 * variance + 1 * covariance`` and a projector with
three layers of width 8192. With two views, the terms equal those of the repository
facebookresearch/vicreg: the variance term is averaged over views, and the covariance term is
summed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from can_jax.objectives.base import Arrays, Loss, Metrics, Objective
from can_jax.objectives.rows import projector
from can_jax.objectives.views import mean, off_diagonal, products, projected_by_view
from can_jax.utils.settings import Key, Number


def loss(
    arrays: Arrays,
    head: Callable[..., Array],
    invariance: float,
    variance: float,
    covariance: float,
) -> tuple[Loss, Metrics]:
    """Compute the weighted sum of the three VICReg terms, and return each term as a metric.

    - Invariance: the mean squared difference between two views, averaged over view pairs (eq. 5).

    - Variance: the mean of ``max(0, 1 - sqrt(variance + 1e-4))`` over dimensions and views (eq. 1).

    - Covariance: twice the mean over views of the sum of squared off-diagonal covariances, divided
      by the width (eq. 4).

    Variances and covariances are unbiased estimates over the images of the global batch.

    Args:
        arrays: The network outputs and targets of one training step.
        head: The projection head, called once on the pooled embeddings of all views of the global
            batch.
        invariance: The coefficient of the invariance term.
        variance: The coefficient of the variance term.
        covariance: The coefficient of the covariance term.
    """
    z = projected_by_view(arrays, head)
    images, views, width = z.shape
    # Summed over the pairs of views, the squared differences are ``views`` times the squared
    # deviations from the mean view. There are ``views * (views - 1) / 2`` pairs.
    deviations = z - z.mean(axis=1, keepdims=True)
    alike = jnp.sum(jnp.square(deviations)) * 2 / ((views - 1) * images * width)
    centered = z - z.mean(axis=0)
    spread = jnp.sum(jnp.square(centered), axis=0) / (images - 1)
    hinge = jnp.mean(jax.nn.relu(1 - jnp.sqrt(spread + 1e-4)))
    covariances = [
        off_diagonal(products(centered[:, view], centered[:, view])) / (images - 1)
        for view in range(views)
    ]
    shared = 2 * mean([jnp.sum(jnp.square(matrix)) for matrix in covariances]) / width
    total = invariance * alike + variance * hinge + covariance * shared
    return total, {
        "vicreg/invariance": alike,
        "vicreg/variance": hinge,
        "vicreg/covariance": shared,
    }


COEFFICIENT = Number(0, 1e6)
OBJECTIVE = Objective(
    reads=frozenset({"pooled"}),
    loss=loss,
    keys={
        "invariance": Key(25.0, COEFFICIENT, "The coefficient of the invariance term."),
        "variance": Key(25.0, COEFFICIENT, "The coefficient of the variance term."),
        "covariance": Key(1.0, COEFFICIENT, "The coefficient of the covariance term."),
    },
    head=projector,
    relates_rows=True,
    min_views=2,
    min_images=2,
)
