"""The reconstruction objective: prediction of hidden patches, as in MAE (arXiv 2111.06377)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from can_jax.objectives.base import Arrays, Loss, Metrics, Objective, at_least_float32


def patch_statistics(
    patches: Float[Array, "rows patches pixels"],
) -> tuple[Float[Array, "rows patches 1"], Float[Array, "rows patches 1"]]:
    """Return the mean of each patch, and ``sqrt(unbiased variance + 1e-6)``."""
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + 1e-6)


def reconstruction_loss(
    prediction: Float[Array, "rows patches pixels"],
    clean: Float[Array, "rows patches pixels"],
    hidden: Bool[Array, "rows patches"],
    normalize: bool = True,
) -> Loss:
    """Return the mean squared error to the clean pixels, over hidden patches.

    The target excludes the noise that was added to the input.

    Args:
        prediction: The prediction of every patch.
        clean: The pixels of every patch, without noise.
        hidden: True for the patches that the encoder did not see.
        normalize: Whether each target patch is normalized by its own mean and standard deviation.
    """
    target = at_least_float32(clean)
    if normalize:
        mean, deviation = patch_statistics(target)
        target = (target - mean) / deviation
    errors = jnp.square(at_least_float32(prediction) - target)
    return jnp.mean(errors.mean(axis=-1), where=hidden)


def loss(arrays: Arrays, normalize: bool) -> tuple[Loss, Metrics]:
    """Return the `reconstruction_loss` of a step."""
    assert arrays.prediction is not None
    assert arrays.clean is not None
    assert arrays.hidden is not None
    return reconstruction_loss(arrays.prediction, arrays.clean, arrays.hidden, normalize), {}


OBJECTIVE = Objective(frozenset({"prediction", "clean", "hidden"}), loss, settings=("normalize",))
