"""Prediction of a teacher's tokens for masked patches, instead of or in addition to the pixels.

The teacher is the moving average of the encoder (`optimizer.ema_decay`). The teacher sees the whole
view, without noise. The student sees only the visible patches. The student's decoder predicts the
teacher's tokens for the masked patches, as in data2vec 2.0 (arXiv 2212.07525) and I-JEPA (arXiv
2301.08243).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from can_jax.models.backbones import decoder_size
from can_jax.models.vit import Linear
from can_jax.objectives.base import Arrays, Loss, Metrics, Objective, at_least_float32
from can_jax.objectives.reconstruction import check_masking

EPSILON = 1e-5  # added to the variance of a target, as in the code of both papers


def standardize(tokens: Float[Array, "rows patches width"]) -> Float[Array, "rows patches width"]:
    """Shift and scale each token to mean 0 and variance 1: LayerNorm without learned parameters."""
    centered = tokens - tokens.mean(axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + EPSILON)


def head(config: Any, width: int, **options: Any) -> Linear:
    """Build the linear layer that maps the decoder's tokens to the width of the encoder."""
    return Linear(decoder_size(config.model).width, width, **options)


def loss(arrays: Arrays, head: Callable[[Array], Array]) -> tuple[Loss, Metrics]:
    """Compute the mean squared error between predictions and the teacher's standardized tokens,
    over masked patches.

    The metric ``latents/deviation`` is the standard deviation of the targets over the masked
    patches of a batch or microbatch, averaged over features. A deviation of 0 means that the
    teacher maps all patches to the same token.

    Args:
        arrays: The network outputs and targets of one training step.
        head: The linear layer that maps the decoder's tokens to predictions of the teacher's
            tokens.
    """
    assert arrays.decoded is not None
    assert arrays.teacher is not None
    assert arrays.hidden is not None
    target = standardize(at_least_float32(arrays.teacher))
    prediction = at_least_float32(head(arrays.decoded[:, 1:]))
    errors = jnp.mean(jnp.square(prediction - target), axis=-1)
    where = arrays.hidden[:, :, None]
    deviation = target.std(axis=(0, 1), where=where).mean()
    return jnp.mean(errors, where=arrays.hidden), {"latents/deviation": deviation}


def check(config: Any) -> None:
    """Check that masking hides at least one patch.

    Raises:
        UserError: ``model.mask_ratio`` leaves all patches visible.
    """
    check_masking(config, "latents")


OBJECTIVE = Objective(
    reads=frozenset({"decoded", "teacher", "hidden"}), loss=loss, head=head, check=check
)
