"""The reconstruction objective, which predicts masked patches as in MAE (arXiv 2111.06377)."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from can_jax.models.can import grid_of, pixels_per_patch
from can_jax.models.masking import visible_count
from can_jax.objectives.base import Arrays, Loss, Metrics, Objective, at_least_float32
from can_jax.utils.errors import UserError
from can_jax.utils.settings import Key, Switch


def patch_statistics(
    patches: Float[Array, "rows patches pixels"],
) -> tuple[Float[Array, "rows patches 1"], Float[Array, "rows patches 1"]]:
    """Return the mean and the standard deviation, ``sqrt(unbiased variance + 1e-6)``, of each
    patch."""
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + 1e-6)


def reconstruction_loss(
    prediction: Float[Array, "rows patches pixels"],
    clean: Float[Array, "rows patches pixels"],
    hidden: Bool[Array, "rows patches"],
    normalize: bool = True,
) -> Loss:
    """Return the mean squared error of the predicted pixels over the masked patches.

    The target is the image before noise was added to the input.

    Args:
        prediction: The pixels predicted for every patch.
        clean: The pixels of every patch, without the added noise.
        hidden: A mask that is True for the patches that the encoder did not see.
        normalize: Whether to normalize each target patch by its own mean and standard deviation.
    """
    target = at_least_float32(clean)
    if normalize:
        mean, deviation = patch_statistics(target)
        target = (target - mean) / deviation
    errors = jnp.square(at_least_float32(prediction) - target)
    return jnp.mean(errors.mean(axis=-1), where=hidden)


def loss(arrays: Arrays, normalize: bool) -> tuple[Loss, Metrics]:
    """Return the `reconstruction_loss` of a training step, and an empty dict of metrics."""
    assert arrays.prediction is not None
    assert arrays.clean is not None
    assert arrays.hidden is not None
    return reconstruction_loss(arrays.prediction, arrays.clean, arrays.hidden, normalize), {}


def check_masking(config: Any, name: str) -> None:
    """Check that masking hides at least one patch, for an objective that predicts masked patches.

    Args:
        config: The configuration.
        name: The name of the objective, which the error message contains.

    Raises:
        UserError: ``model.mask_ratio`` leaves all patches visible.
    """
    patches, ratio = math.prod(grid_of(config)), config.model.mask_ratio
    if visible_count(patches, ratio) == patches:
        raise UserError(
            f"config.model.mask_ratio={ratio} hides none of {patches} patches: objective.{name} "
            f"has nothing to predict; raise mask_ratio, or set config.objective.{name}.weight=0"
        )


def check(config: Any) -> None:
    """Check that patches can be normalized and that masking hides at least one patch.

    Raises:
        UserError: The mask ratio hides no patch, or ``normalize`` is set for patches that consist
            of one pixel with one channel.
    """
    if pixels_per_patch(config) == 1 and config.objective.reconstruction.normalize:
        raise UserError(
            "config.model.patch_size=1 with data.channels=1: a patch of a single value cannot be "
            "normalized by its standard deviation; set objective.reconstruction.normalize=False or "
            "use larger patches"
        )
    check_masking(config, "reconstruction")


OBJECTIVE = Objective(
    frozenset({"prediction", "clean", "hidden"}),
    loss,
    weight=0.67,
    keys={
        "normalize": Key(
            True,
            Switch(),
            "Whether to normalize each target patch by its own mean and standard deviation.",
        )
    },
    check=check,
)
