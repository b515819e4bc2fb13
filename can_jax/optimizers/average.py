"""The exponential moving average (EMA) of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def update_average(average: Any, parameters: Any, decay: float, step: Int[Array, ""]) -> Any:
    """Return the exponential moving average updated with new parameters.

    At step ``t`` the decay is ``min(decay, (1 + t) / (10 + t))``, so the initial parameters are
    soon forgotten.

    Args:
        average: The moving average, a pytree like ``parameters``.
        parameters: The new parameters.
        decay: The largest weight of the average, in [0, 1).
        step: The number of steps before this one.
    """
    share = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, b: a + share.astype(a.dtype) * (b - a), average, parameters)
