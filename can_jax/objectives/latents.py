"""Prediction of hidden patches' latents: the tokens of a teacher, in place of or beside pixels.

The teacher is the moving average of the encoder (`optimizer.ema_decay`). It sees the whole view,
without noise. The student sees the visible patches, and its decoder predicts the teacher's tokens
of the hidden ones, as in data2vec 2.0 (arXiv 2212.07525) and I-JEPA (arXiv 2301.08243).
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
    """Shift and scale each token to mean 0 and variance 1: LayerNorm without parameters."""
    centered = tokens - tokens.mean(axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + EPSILON)


def head(config: Any, width: int, **options: Any) -> Linear:
    """Build the linear layer from the decoder's tokens to latents of the encoder's width."""
    return Linear(decoder_size(config.model).width, width, **options)


def loss(arrays: Arrays, head: Callable[[Array], Array]) -> tuple[Loss, Metrics]:
    """Compute the mean squared error to the teacher's standardized tokens, over hidden patches.

    ``latents/deviation`` is the standard deviation of a target's feature over the hidden patches of
    a batch or microbatch, averaged over features. It is 0 if the teacher maps all patches to one
    token.

    Args:
        arrays: The outputs of the network and the targets of a step.
        head: The linear layer from the decoder's tokens to latents.
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
    """Check that masking hides patches.

    Raises:
        UserError: All patches are visible.
    """
    check_masking(config, "latents")


OBJECTIVE = Objective(
    reads=frozenset({"decoded", "teacher", "hidden"}), loss=loss, head=head, check=check
)
