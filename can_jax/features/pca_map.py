"""Color maps of patch tokens, in which RGB values show the first three principal components."""

import numpy as np
from jaxtyping import Float

TAIL = 2.0  # the percentage of the values that is clipped at either end


def pca_colors(
    tokens: Float[np.ndarray, "images patches width"],
) -> Float[np.ndarray, "images patches 3"]:
    """Return a color for each patch, from the first three principal components of the patch tokens
    of all images.

    Patches with similar tokens get similar colors, within an image and across images. A component
    without variance gets the constant value 0.5.

    Args:
        tokens: The patch tokens of several images, of shape (images, patches, width).

    Returns:
        The RGB colors, with values in [0, 1]. Red, green and blue show the first, second and third
        principal component.
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
