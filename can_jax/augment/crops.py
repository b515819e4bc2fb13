"""Random and center crops of images on the host, with TensorFlow or Pillow."""

from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from can_jax.utils.tensorflow import tensorflow

BICUBIC = Image.Resampling.BICUBIC
PUBLISHED = 224  # the image size up to which MAE evaluates on the center of a larger image
ATTEMPTS = 10  # the maximum number of draws for a box that fits, as in torchvision


def uniforms(seed: int, positions: Any, count: int) -> Any:
    """Return pseudorandom numbers in [0, 1) for each position in the stream of examples.

    The numbers depend only on the seed, the positions and ``count``. The generator is SplitMix64
    (Steele, Lea and Flood, 2014), which hashes counters. One call computes the random numbers for
    all positions. TensorFlow's stateless random functions take a single seed, so they would need
    one call per image.

    Args:
        seed: Any integer.
        positions: The positions of examples in the stream, an int64 tensor of any shape.
        count: The number of values to return per position.

    Returns:
        A float32 tensor of the shape of ``positions``, plus a last axis of length ``count``.
    """
    tf = tensorflow()
    golden, first, second = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
    counters = tf.cast(positions, tf.uint64)[..., None] * tf.constant(count, tf.uint64)
    counters += tf.constant(np.arange(1, count + 1), tf.uint64)
    start = mix_key(seed)
    mixed = counters * tf.constant(golden, tf.uint64) + tf.constant(start, tf.uint64)
    for shift, factor in ((30, first), (27, second)):
        mixed = tf.bitwise.bitwise_xor(mixed, shifted(mixed, shift)) * tf.constant(
            factor, tf.uint64
        )
    mixed = tf.bitwise.bitwise_xor(mixed, shifted(mixed, 31))
    return tf.cast(shifted(mixed, 40), tf.float32) * 2.0**-24  # float32 has 24 bits of precision


def mix_key(seed: int) -> int:
    """Hash a seed of any size to 64 bits, so that consecutive seeds give unrelated numbers."""
    return int(np.random.SeedSequence(seed % 2**63).generate_state(1, np.uint64)[0])


def shifted(values: Any, bits: int) -> Any:
    """Shift each element of a uint64 tensor right by ``bits`` bits, filling with zeros."""
    tf = tensorflow()
    return tf.bitwise.right_shift(values, tf.constant(bits, tf.uint64))


def random_boxes(
    seed: int,
    positions: Any,
    image_size: Any,
    views: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    fit: str = "redraw",
) -> Any:
    """Draw random crop boxes as torchvision's `RandomResizedCrop` does (arXiv 1409.4842).

    The area of a box is drawn uniformly from ``area``, and its width-to-height ratio log-uniformly
    from ``aspect``. If the box does not fit into the image, both the area and the ratio are
    redrawn. If none of `ATTEMPTS` draws fits, the largest centered box with a ratio in ``aspect``
    is used.

    With ``fit="clamp"``, a box is drawn once, and its height and width are limited to those of the
    image. BYOL's code and MAE's linear probe limit boxes as ``fit="clamp"`` does.

    Args:
        seed: The seed of the run.
        positions: The positions of examples in the stream, an int64 tensor of any shape.
        image_size: The (height, width) of the images in pixels, as ints or scalar tensors.
        views: The number of boxes per position.
        area: The smallest and largest area of a box, as fractions of the image area.
        aspect: The smallest and largest width-to-height ratio of a box.
        fit: The handling of a box that exceeds the image: ``redraw`` or ``clamp``.

    Returns:
        The boxes (top, left, height, width) in whole pixels, a float32 tensor (..., views, 4).
    """
    tf = tensorflow()
    height, width = (tf.cast(side, tf.float32) for side in image_size)
    drawn = uniforms(seed, positions, views * (2 * ATTEMPTS + 2))
    drawn = tf.reshape(drawn, tf.concat([tf.shape(drawn)[:-1], [views, 2 * ATTEMPTS + 2]], axis=0))

    share = area[0] + (area[1] - area[0]) * drawn[..., :ATTEMPTS]
    low, high = np.log(aspect[0]), np.log(aspect[1])
    ratio = tf.exp(low + (high - low) * drawn[..., ATTEMPTS : 2 * ATTEMPTS])
    widths = tf.round(tf.sqrt(share * height * width * ratio))
    heights = tf.round(tf.sqrt(share * height * width / ratio))
    if fit == "clamp":
        widths = tf.clip_by_value(widths, 1.0, width)
        heights = tf.clip_by_value(heights, 1.0, height)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)

    # If none fits, take the largest centered box whose aspect ratio is in the range.
    fallback_width = tf.maximum(1.0, tf.minimum(width, tf.round(height * aspect[1])))
    fallback_height = tf.maximum(1.0, tf.minimum(height, tf.round(width / aspect[0])))
    first = tf.argmax(tf.cast(fits, tf.int32), axis=-1)[..., None]
    any_fits = tf.reduce_any(fits, axis=-1)

    def chosen(values: Any, fallback: Any) -> Any:
        picked = tf.gather(values, first, batch_dims=len(values.shape) - 1)[..., 0]
        return tf.where(any_fits, picked, fallback)

    box_width, box_height = chosen(widths, fallback_width), chosen(heights, fallback_height)
    offset = tf.where(any_fits, drawn[..., -2], 0.5), tf.where(any_fits, drawn[..., -1], 0.5)
    top = tf.floor(offset[0] * (height - box_height + 1))
    left = tf.floor(offset[1] * (width - box_width + 1))
    return tf.stack([top, left, box_height, box_width], axis=-1)


def crop_and_resize(
    image: Any, boxes: Any, size: tuple[int, int], interpolation: str = "bilinear"
) -> Any:
    """Cut boxes from an image, and resize each box with half-pixel centers.

    A bilinear resize is antialiased if the box is more than twice as large as ``size`` along both
    axes. A bicubic resize is always antialiased, as in Pillow.

    Args:
        image: A uint8 tensor (height, width, channels).
        boxes: The boxes (top, left, height, width) in pixels, an int32 tensor (views, 4) of static
            shape.
        size: The (height, width) to which to resize, in pixels.
        interpolation: ``bilinear`` or ``bicubic``.

    Returns:
        A uint8 tensor (views, *size, channels).
    """
    tf = tensorflow()

    def view(box: Any) -> Any:
        part = tf.slice(image, [box[0], box[1], 0], [box[2], box[3], -1])
        if interpolation == "bicubic":
            pixels = tf.image.resize(part, size, method="bicubic", antialias=True)
            return tf.cast(tf.clip_by_value(pixels, 0.0, 255.0) + 0.5, tf.uint8)
        much_smaller = tf.reduce_all(box[2:] > 2 * tf.constant(size))
        return tf.cond(much_smaller, lambda: resized(part, True), lambda: resized(part, False))

    def resized(part: Any, antialias: bool) -> Any:
        return tf.cast(tf.image.resize(part, size, antialias=antialias) + 0.5, tf.uint8)

    return tf.stack([view(box) for box in tf.unstack(boxes)])


def enlarged(size: tuple[int, int]) -> Int[np.ndarray, "2"]:
    """Return the minimum (height, width) of a resized image before a center crop of ``size``.

    If the shorter side of ``size`` is at most 224 pixels, the result is 8/7 of ``size``, as in MAE:
    256 for 224. If the shorter side of ``size`` exceeds 224 pixels, the result equals ``size``.

    Args:
        size: The (height, width) of the center crop in pixels.
    """
    sides = np.array(size)
    return np.round(sides * 8 / 7).astype(int) if min(size) <= PUBLISHED else sides


def resize_and_center_crop(image: Any, size: tuple[int, int]) -> Any:
    """Resize and center-crop an image for evaluation, as torchvision's `Resize` and `CenterCrop`
    do.

    The image is resized bicubically with antialiasing, to the smallest size that covers
    ``enlarged(size)`` and keeps the aspect ratio. The result is the center of the resized image.

    Args:
        image: A uint8 tensor (height, width, channels). An image of exactly ``size`` is returned
            unchanged.
        size: The (height, width) of the result in pixels.

    Returns:
        A uint8 tensor (*size, channels).
    """
    tf = tensorflow()

    def resized() -> Any:
        given = tf.cast(tf.shape(image)[:2], tf.float64)
        wanted = tf.constant(size, tf.float64)
        # The scale takes one side to its target exactly and the other to at least its target.
        target = tf.constant(enlarged(size), tf.float64)
        whole = tf.floor(given * tf.reduce_max(target / given) + 1e-6)
        start = tf.round((whole - wanted) / 2)
        pixels = tf.raw_ops.ScaleAndTranslate(  # computes no more than the crop
            images=image[None],
            size=size,
            scale=tf.cast(whole / given, tf.float32),
            translation=tf.cast(-start, tf.float32),
            kernel_type="keyscubic",
            antialias=True,
        )
        return tf.cast(tf.clip_by_value(pixels[0], 0.0, 255.0) + 0.5, tf.uint8)

    fits = tf.reduce_all(tf.equal(tf.shape(image)[:2], size))
    result = tf.cond(fits, lambda: image, resized)
    return tf.ensure_shape(result, (*size, image.shape[-1]))


def center_crop(
    image: UInt8[np.ndarray, "height width channels"], size: tuple[int, int]
) -> UInt8[np.ndarray, "rows columns channels"]:
    """Resize and center-crop an image with Pillow.

    The uint8 values differ from those of `resize_and_center_crop` by at most 1.

    Args:
        image: The image to resize and crop. An image of exactly ``size`` is returned unchanged.
        size: The (height, width) of the result in pixels.
    """
    given, wanted = np.array(image.shape[:2], np.float64), np.array(size, np.float64)
    if (given == wanted).all():
        return image
    whole = np.floor(given * np.max(enlarged(size) / given) + 1e-6)
    start = np.round((whole - wanted) / 2)
    top, left = start * given / whole
    bottom, right = np.minimum((start + wanted) * given / whole, given)
    # Planes of floats are not rounded between the passes along rows and columns.
    box = (left, top, right, bottom)
    planes = [
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size[::-1], BICUBIC, box=box))
        for plane in np.moveaxis(image, 2, 0)
    ]
    return (np.clip(np.stack(planes, axis=2), 0, 255) + 0.5).astype(np.uint8)
