"""Conversion of images to patches, and random masking of patches.

A mask is given by ``shuffle``, a permutation of the patch indices for each view. The first
``visible`` entries of ``shuffle`` are the indices of the patches that the encoder processes; the
other patches are masked.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped


def patch_grid(size: tuple[int, ...], patch_size: int) -> tuple[int, int]:
    """Return the number of patches of an image along (height, width).

    Args:
        size: The (height, width) of the image in pixels.
        patch_size: The side length of a patch in pixels.
    """
    height, width = size
    return height // patch_size, width // patch_size


def patchify(
    images: Float[Array, "rows height width channels"], patch_size: int
) -> Float[Array, "rows patches pixels"]:
    """Split images into patches in row-major order.

    Within a patch, values are in the order (row, column, channel).
    """
    rows, *size, channels = images.shape
    grid = patch_grid(tuple(size), patch_size)
    blocks = images.reshape(rows, grid[0], patch_size, grid[1], patch_size, channels)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(rows, grid[0] * grid[1], -1)


def unpatchify(
    patches: Float[Array, "rows patches pixels"], grid: tuple[int, int], patch_size: int
) -> Float[Array, "rows height width channels"]:
    """Assemble images from patches, as the inverse of `patchify`.

    Args:
        patches: All patches of each image in row-major order.
        grid: The number of patches along (height, width).
        patch_size: The side length of a patch in pixels.
    """
    rows = patches.shape[0]
    blocks = patches.reshape(rows, *grid, patch_size, patch_size, -1)
    height, width = grid[0] * patch_size, grid[1] * patch_size
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(rows, height, width, -1)


def visible_count(patches: int, mask_ratio: float) -> int:
    """Return the number of visible patches per view, ``floor(patches * (1 - mask_ratio))``."""
    # ``10 * (1 - 0.9)`` is 0.9999999999999998. Without the rounding, `int` would truncate it to 0.
    return int(round(patches * (1 - mask_ratio), 6))


def random_shuffle(keys: Key[Array, " rows"], patches: int) -> Int[Array, "rows patches"]:
    """Draw an independent, uniformly random permutation of the patch indices for each random
    key."""
    return jax.vmap(lambda key: jax.random.permutation(key, patches))(keys)


def gather_patches(
    values: Shaped[Array, "rows patches width"], index: Int[Array, "rows chosen"]
) -> Shaped[Array, "rows chosen width"]:
    """Return ``values[row, index[row]]`` for each row of the batch, stacked along the first
    axis."""
    return jnp.take_along_axis(values, index[:, :, None], axis=1)


def hidden_mask(shuffle: Int[Array, "rows patches"], visible: int) -> Bool[Array, "rows patches"]:
    """Return a boolean mask (views, patches) that is True for patches hidden from the encoder."""
    return jnp.argsort(shuffle, axis=1) >= visible
