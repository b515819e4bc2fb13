"""The exponential moving average (EMA) of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def update_average(
    average: Any, parameters: Any, decay: float, step: Int[Array, ""], warmup: bool = True
) -> Any:
    """Return the exponential moving average after an update with new parameters.

    With ``warmup``, the decay rate at step ``t`` is ``min(decay, (1 + t) / (10 + t))``, so the
    initial parameters are soon forgotten. Without ``warmup``, the decay rate is ``decay`` at all
    steps.

    Args:
        average: The previous moving average, a pytree like ``parameters``.
        parameters: The new parameters.
        decay: The maximum decay rate, in [0, 1). The decay rate is the weight of the previous
            average.
        step: The number ``t`` of steps already taken; 0 at the first update.
        warmup: Whether to limit the decay rate at the first steps.
    """
    share = 1 - jnp.minimum(decay, (1 + step) / (10 + step)) if warmup else jnp.asarray(1 - decay)
    return jax.tree.map(lambda a, b: a + share.astype(a.dtype) * (b - a), average, parameters)
