"""Position embeddings of patches, and sinusoidal features of a noise level."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@functools.lru_cache(maxsize=16)
def sincos_2d(grid: tuple[int, int], width: int) -> Float[np.ndarray, "patches width"]:
    """Return fixed sin-cos position embeddings of a (height, width) grid of patches in row-major
    order.

    The embeddings have the layout of MAE's code (arXiv 2111.06377). The first half of an embedding
    encodes the column of the patch, and the second half its row. Each half holds all sines, then
    all cosines, at the frequencies ``10000 ** (-i / (width / 4))``. The result has no embedding for
    the class token.

    Raises:
        ValueError: ``width`` is not divisible by 4.
    """
    if width % 4:
        raise ValueError(f"2-D sin-cos positions require a width divisible by 4, got {width}")
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width / 4))

    def encode(coordinate: np.ndarray) -> np.ndarray:
        angles = coordinate.reshape(-1, 1) * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    # MAE stores the table in float32. Rounding makes float64 agree with its weights, too.
    table = np.concatenate([encode(columns), encode(rows)], axis=1).astype(np.float32)
    table.flags.writeable = False  # the cache hands the same array to every caller
    return table


def positions_with_class(grid: tuple[int, int], width: int) -> Float[np.ndarray, "tokens width"]:
    """Return the embeddings of `sincos_2d`, preceded by a zero embedding for the class token, as in
    MAE's weight files."""
    table = sincos_2d(grid, width)
    return np.concatenate([np.zeros_like(table[:1]), table])


def resized_positions(
    table: Float[Array, "patches width"], grid: tuple[int, int], to: tuple[int, int]
) -> Float[Array, "resized width"]:
    """Resize learned position embeddings from one (height, width) grid of patches to another.

    The interpolation is bicubic with antialiasing, as in timm's `resample_abs_pos_embed`. If the
    grids are equal, the table is returned unchanged.
    """
    if grid == to:
        return table
    width = table.shape[1]
    shape = (*to, width)
    resized = jax.image.resize(table.reshape(*grid, width), shape, "cubic", antialias=True)
    return resized.reshape(-1, width)


def sincos_level(level: Float[Array, " rows"], width: int) -> Float[Array, "rows width"]:
    """Return the sines, then the cosines, of each noise level times the frequencies ``10000 ** (-i
    / (width / 2))``."""
    frequencies = 10000.0 ** (-np.arange(width // 2) / (width / 2))
    angles = level[:, None] * jnp.asarray(frequencies, level.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
