"""The denoising objective: prediction of the noise on visible patches (arXiv 2210.16870)."""

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
    """Return the mean squared error of the predicted noise, over visible patches.

    The noise is not normalized per patch, so that the network has to predict its magnitude, too.

    Args:
        prediction: The prediction of every patch.
        noise: The noise of every patch.
        hidden: True for the patches that the encoder did not see.
    """
    errors = jnp.square(at_least_float32(prediction) - at_least_float32(noise))
    return jnp.mean(errors.mean(axis=-1), where=~hidden)


def loss(arrays: Arrays) -> tuple[Loss, Metrics]:
    """Return the `denoising_loss` of a step, and two energies of the input's noise.

    ``denoising/energy`` is the mean square of the noise on visible patches. ``denoising/residual``
    is the mean square of the error of its prediction. Both are in normalized pixels, whatever the
    scale of the target.
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
    """Return the share of the noise that the best linear denoiser of a patch explains.

    The denoiser is the Wiener filter, given the level sigma, which is uniform in
    [0, sigma_max], and the covariance of clean patches. In a direction of variance v, it explains
    ``sigma^4 / (v + sigma^2)`` of the noise's energy ``sigma^2``. With ``r = sqrt(v) / sigma_max``,
    the mean over sigma is ``1 - 3 r^2 + 3 r^3 arctan(1 / r)`` of the mean energy.

    Args:
        variances: The eigenvalues of the covariance, in squared normalized pixels.
        sigma_max: The largest noise level.
    """
    r = np.sqrt(np.maximum(np.asarray(variances, np.float64), 0)) / sigma_max
    # For a large r the terms nearly cancel, so two terms of the series in 1 / r are used instead.
    small = np.minimum(r, 100)
    exact = 1 - 3 * small**2 + 3 * small**3 * np.arctan2(1, small)
    large = np.maximum(r, 100)
    return float(np.mean(np.where(r < 100, exact, 3 / (5 * large**2) - 3 / (7 * large**4))))


def check(config: Any) -> None:
    """Check that there is noise to predict.

    Raises:
        UserError: The noise is disabled.
    """
    if not config.noise.sigma_max:
        raise UserError(
            "config.noise.sigma_max=0: there is no noise to predict; set "
            "objective.denoising.weight=0"
        )


OBJECTIVE = Objective(
    frozenset({"prediction", "noise", "noise_scale", "hidden"}), loss, weight=0.30, check=check
)
