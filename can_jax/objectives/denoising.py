"""The denoising objective: prediction of the noise on visible patches (arXiv 2210.16870)."""

from typing import Any

import jax.numpy as jnp
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
    """Return the `denoising_loss` of a step."""
    assert arrays.prediction is not None
    assert arrays.noise is not None
    assert arrays.hidden is not None
    return denoising_loss(arrays.prediction, arrays.noise, arrays.hidden), {}


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


OBJECTIVE = Objective(frozenset({"prediction", "noise", "hidden"}), loss, weight=0.30, check=check)
