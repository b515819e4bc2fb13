"""Raw pixels as features, a baseline for the features of an encoder."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def pixels(most: int) -> Callable[[Any, Any], Any]:
    """Return a function that resizes images to at most ``most`` pixels along each side, and
    flattens the resized images.

    The returned function takes a state, which it ignores, and images of shape (images, height,
    width, channels). The returned function outputs an array of shape (images, values).
    """

    def features(state: Any, images: Any) -> Any:
        count, *size, channels = images.shape
        small = (count, *(min(side, most) for side in size), channels)
        return jax.image.resize(images.astype(jnp.float32), small, "linear").reshape(count, -1)

    return features
