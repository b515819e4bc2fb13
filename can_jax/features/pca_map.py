"""Maps of patch tokens in colors: their first three principal components."""

import numpy as np
from jaxtyping import Float

TAIL = 2.0  # percent of the values at either end that share the darkest or the brightest color


def pca_colors(
    tokens: Float[np.ndarray, "images patches width"],
) -> Float[np.ndarray, "images patches 3"]:
    """Return a color for each patch, from the principal components of the patches of all images.

    Patches whose tokens are alike have like colors, within an image and between images. A component
    without variance is gray.

    Args:
        tokens: The patch tokens of some images.

    Returns:
        Red, green and blue in [0, 1]: the first, the second and the third component.
    """
    rows = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    rows = rows - rows.mean(axis=0)
    _, directions = np.linalg.eigh(rows.T @ rows)
    first = directions[:, ::-1][:, :3]
    largest = np.abs(first).argmax(axis=0)
    first = first * np.sign(first[largest, range(first.shape[1])])  # the sign is arbitrary
    values = rows @ first
    low, high = np.percentile(values, [TAIL, 100 - TAIL], axis=0)
    span = high - low
    colors = np.where(span > 1e-9, (values - low) / np.maximum(span, 1e-9), 0.5)
    return np.clip(colors, 0, 1).reshape(*tokens.shape[:2], -1)
