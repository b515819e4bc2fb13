"""Random resized crops of images that are already on the device.

Boxes have the same distribution as those of `can_jax.augment.crops.random_boxes` with
``fit="redraw"``, but their random numbers come from JAX.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

ATTEMPTS = 10  # as in `can_jax.augment.crops`
DRAWS = 2 * ATTEMPTS + 2  # random numbers per box
Box = Float[Array, " 4"]  # top, left, height, width, in whole pixels


def random_crops(
    image: UInt8[Array, "height width channels"],
    key: Key[Array, ""],
    views: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    size: tuple[int, int],
) -> UInt8[Array, "views rows columns channels"]:
    """Cut random boxes from an image, and resize each bilinearly without antialiasing.

    Args:
        image: The image to crop. Each side of the image must be at most twice the corresponding
            side of ``size``, since crops are not antialiased.
        key: The random key that determines the crops.
        views: The number of crops to return.
        area: The smallest and largest area of a box, as fractions of the image area.
        aspect: The smallest and largest width-to-height ratio of a box.
        size: The (height, width) of the crops in pixels.
    """
    height, width, _ = image.shape
    small = height <= 2 * size[0] and width <= 2 * size[1]
    assert small, "images more than twice as large as their crops need antialiasing"
    drawn = jax.random.uniform(key, (views, DRAWS))

    def view(drawn: Array) -> Array:
        return crop(image, box_of(drawn, (height, width), area, aspect), size)

    return jax.vmap(view)(drawn)


def box_of(
    drawn: Float[Array, " draws"],
    image_size: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Box:
    """Convert uniform random numbers to a crop box, as `can_jax.augment.crops.random_boxes` does
    with ``fit="redraw"``.

    Args:
        drawn: `DRAWS` random numbers, uniform in [0, 1).
        image_size: The (height, width) of the image in pixels.
        area: The smallest and largest area of a box, as fractions of the image area.
        aspect: The smallest and largest width-to-height ratio of a box.
    """
    height, width = image_size
    share = area[0] + (area[1] - area[0]) * drawn[:ATTEMPTS]
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = jnp.exp(low + (high - low) * drawn[ATTEMPTS : 2 * ATTEMPTS])
    widths = jnp.round(jnp.sqrt(share * height * width * ratio))
    heights = jnp.round(jnp.sqrt(share * height * width / ratio))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first, any_fits = jnp.argmax(fits), fits.any()

    # If none fits, take the largest centered box whose aspect ratio is in the range.
    whole = (
        max(1, min(height, round(width / aspect[0]))),
        max(1, min(width, round(height * aspect[1]))),
    )
    box_height = jnp.where(any_fits, heights[first], whole[0])
    box_width = jnp.where(any_fits, widths[first], whole[1])
    offset = jnp.where(any_fits, drawn[-2:], 0.5)
    top = jnp.floor(offset[0] * (height - box_height + 1))
    left = jnp.floor(offset[1] * (width - box_width + 1))
    return jnp.stack([top, left, box_height, box_width])


def crop(
    image: UInt8[Array, "height width channels"], box: Box, size: tuple[int, int]
) -> UInt8[Array, "rows columns channels"]:
    """Cut a box from an image, and resize the box bilinearly with half-pixel centers.

    The interpolation is a matrix product along each axis, so that `jax.vmap` can batch boxes of
    different sizes.
    """
    vertical = _interpolation(box[0], box[2], image.shape[0], size[0])
    horizontal = _interpolation(box[1], box[3], image.shape[1], size[1])
    # Accelerators would otherwise round both factors to bfloat16 or TF32.
    pixels = jnp.einsum(
        "ih,hwc,jw->ijc", vertical, image.astype(jnp.float32), horizontal, precision="highest"
    )
    return (pixels + 0.5).astype(jnp.uint8)


def _interpolation(
    start: Float[Array, ""], extent: Float[Array, ""], pixels: int, size: int
) -> Float[Array, "size pixels"]:
    """Return the bilinear interpolation matrix for one axis of a crop.

    The matrix maps the ``pixels`` values along an image axis to ``size`` values, sampled between
    ``start`` and ``start + extent``.
    """
    centers = (jnp.arange(size) + 0.5) * (extent / size) - 0.5
    centers = start + jnp.clip(centers, 0.0, extent - 1)
    return jnp.maximum(0.0, 1.0 - jnp.abs(centers[:, None] - jnp.arange(pixels)))
