"""Prediction of the noise on visible patches (arXiv 2210.16870)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from can_jax.objectives.base import Arrays, Loss, Metrics, Objective, at_least_float32


def denoising_loss(
    prediction: Float[Array, "rows patches pixels"],
    noise: Float[Array, "rows patches pixels"],
    hidden: Bool[Array, "rows patches"],
) -> Loss:
    """Mean squared error on visible patches to the noise, which is never patch-normalised: its
    size is what there is to learn."""
    errors = jnp.square(at_least_float32(prediction) - at_least_float32(noise))
    return jnp.mean(errors.mean(axis=-1), where=~hidden)


def loss(arrays: Arrays) -> tuple[Loss, Metrics]:
    """`denoising_loss` of a step."""
    assert arrays.prediction is not None
    assert arrays.noise is not None
    assert arrays.hidden is not None
    return denoising_loss(arrays.prediction, arrays.noise, arrays.hidden), {}


OBJECTIVE = Objective(frozenset({"prediction", "noise", "hidden"}), loss)
