"""Scaling of feature vectors to length 1."""

import numpy as np
from jaxtyping import Float
from numpy.typing import DTypeLike


def unit(
    features: Float[np.ndarray, "examples width"], dtype: DTypeLike = np.float64
) -> Float[np.ndarray, "examples width"]:
    """Scale each feature vector to length 1; a vector shorter than 1e-12 is divided by 1e-12.

    `can_jax.objectives.rows.normalize` is the differentiable version, with bounded gradients.

    Args:
        features: The feature vector of each example.
        dtype: The dtype of the computation and of the result, by default float64.
    """
    features = features.astype(dtype, copy=False)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
