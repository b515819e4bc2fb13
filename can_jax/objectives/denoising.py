"""The denoising objective, which predicts the noise added to visible patches (arXiv 2210.16870)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from can_jax.objectives.base import Arrays, Loss, Metrics, Objective, at_least_float32
from can_jax.utils.errors import UserError


def denoising_loss(
    prediction: Float[Array, "rows patches pixels"],
    noise: Float[Array, "rows patches pixels"],
    hidden: Bool[Array, "rows patches"],
) -> Loss:
    """Return the mean squared error of the predicted noise over the visible patches.

    The target noise is not normalized per patch, so the network must also predict the noise's
    magnitude.

    Args:
        prediction: The noise predicted for every patch.
        noise: The target noise of every patch.
        hidden: A mask that is True for the patches that the encoder did not see.
    """
    errors = jnp.square(at_least_float32(prediction) - at_least_float32(noise))
    return jnp.mean(errors.mean(axis=-1), where=~hidden)


def loss(arrays: Arrays) -> tuple[Loss, Metrics]:
    """Return the `denoising_loss` of a training step, and two metrics of the noise.

    ``denoising/energy`` is the mean square of the noise on visible patches. ``denoising/residual``
    is the mean squared error of the predicted noise on visible patches. For every value of
    ``noise.target``, both metrics are in units of squared normalized pixels.
    """
    prediction, noise, hidden = arrays.prediction, arrays.noise, arrays.hidden
    assert prediction is not None
    assert noise is not None
    assert arrays.noise_scale is not None
    assert hidden is not None
    scale = arrays.noise_scale[:, None, None]
    added = scale * at_least_float32(noise)
    predicted = scale * at_least_float32(prediction)
    return denoising_loss(prediction, noise, hidden), {
        "denoising/energy": denoising_loss(jnp.zeros_like(added), added, hidden),
        "denoising/residual": denoising_loss(predicted, added, hidden),
    }


def linear_bound(variances: Float[np.ndarray, " pixels"], sigma_max: float) -> float:
    """Return the fraction of noise energy that the optimal linear denoiser of a patch removes.

    The optimal linear denoiser is the Wiener filter, which depends on the noise level sigma and on
    the covariance of clean patches. Along an eigenvector with eigenvalue v, the noise has the
    energy ``sigma^2``, of which the filter removes ``sigma^4 / (v + sigma^2)``. With sigma uniform
    in [0, sigma_max] and ``r = sqrt(v) / sigma_max``, the removed fraction of the mean energy is
    ``1 - 3 r^2 + 3 r^3 arctan(1 / r)``.

    Args:
        variances: The eigenvalues of the covariance of clean patches, in squared normalized pixels.
        sigma_max: The largest noise level, as a standard deviation in normalized pixels.
    """
    r = np.sqrt(np.maximum(np.asarray(variances, np.float64), 0)) / sigma_max
    # For a large r the terms nearly cancel, so two terms of the series in 1 / r are used instead.
    small = np.minimum(r, 100)
    exact = 1 - 3 * small**2 + 3 * small**3 * np.arctan2(1, small)
    large = np.maximum(r, 100)
    return float(np.mean(np.where(r < 100, exact, 3 / (5 * large**2) - 3 / (7 * large**4))))


def check(config: Any) -> None:
    """Check that noise is added to the input, since the objective predicts this noise.

    Raises:
        UserError: ``noise.sigma_max`` is 0.
    """
    if not config.noise.sigma_max:
        raise UserError(
            "config.noise.sigma_max=0: there is no noise to predict; raise sigma_max, or "
            "set config.objective.denoising.weight=0"
        )


OBJECTIVE = Objective(
    frozenset({"prediction", "noise", "noise_scale", "hidden"}), loss, weight=0.30, check=check
)
