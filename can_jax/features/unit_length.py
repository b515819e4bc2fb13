"""Features scaled to length 1."""

import numpy as np
from jaxtyping import Float
from numpy.typing import DTypeLike


def unit(
    features: Float[np.ndarray, "examples width"], dtype: DTypeLike = np.float64
) -> Float[np.ndarray, "examples width"]:
    """Return features scaled to length 1; those shorter than 1e-12 are divided by that.

    `can_jax.objectives.rows.normalize` does so with bounded gradients.

    Args:
        features: The features of each example.
        dtype: The precision of the computation and of the result. Double precision doubles the
            memory of a bank of a million features.
    """
    features = features.astype(dtype, copy=False)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
