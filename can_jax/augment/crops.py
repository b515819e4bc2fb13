"""Crops on the host: boxes that depend on the position in the stream alone, and their resizing."""

from typing import Any

import numpy as np

from can_jax.tf import tensorflow

ATTEMPTS = 10  # draws for a box that fits, as in torchvision; then a centred one


def uniforms(seed: int, positions: Any, count: int) -> Any:
    """Numbers in [0, 1) that depend on (seed, position, place) only, vectorised over positions.

    Counters through the SplitMix64 mixer (Steele, Lea, Flood, 2014). TensorFlow's stateless random
    functions take one seed a call, which would mean one call an image.

    Args:
        seed: any int.
        positions: int64 tensor (...,).
        count: numbers for each position.

    Returns:
        float32 tensor (..., count).
    """
    tf = tensorflow()
    # Python ints are reduced by hand: TensorFlow refuses constants that do not fit.
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
    return tf.cast(shifted(mixed, 40), tf.float32) * 2.0**-24  # 24 bits fill a float32


def mix_key(seed: int) -> int:
    """A seed spread over 64 bits, so that neighbouring seeds give unrelated numbers."""
    return int(np.random.SeedSequence(seed % 2**63).generate_state(1, np.uint64)[0])


def shifted(values: Any, bits: int) -> Any:
    """A logical shift to the right."""
    tf = tensorflow()
    return tf.bitwise.right_shift(values, tf.constant(bits, tf.uint64))


def random_boxes(
    seed: int,
    positions: Any,
    image_size: Any,
    views: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Any:
    """Boxes of random resized crops, one a view (arXiv 1409.4842; torchvision's sampling).

    A box covers a share of the image drawn uniformly from ``area``, with a width-to-height ratio
    drawn log-uniformly from ``aspect``.

    Args:
        seed: of the run.
        positions: int64 tensor (...,), places in the stream.
        image_size: (height, width) of the images, ints or scalar tensors.
        views: boxes for each position.
        area, aspect: the ranges.

    Returns:
        float32 tensor (..., views, 4) of whole pixels: top, left, height, width.
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
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)

    # When none fits, the whole image but for what its own aspect has beyond the range.
    fallback_width = tf.maximum(1.0, tf.minimum(width, tf.round(height * aspect[1])))
    fallback_height = tf.maximum(1.0, tf.minimum(height, tf.round(width / aspect[0])))
    first = tf.argmax(tf.cast(fits, tf.int32), axis=-1)[..., None]
    found = tf.reduce_any(fits, axis=-1)

    def chosen(values: Any, fallback: Any) -> Any:
        picked = tf.gather(values, first, batch_dims=len(values.shape) - 1)[..., 0]
        return tf.where(found, picked, fallback)

    box_width, box_height = chosen(widths, fallback_width), chosen(heights, fallback_height)
    centred = tf.where(found, drawn[..., -2], 0.5), tf.where(found, drawn[..., -1], 0.5)
    top = tf.floor(centred[0] * (height - box_height + 1))
    left = tf.floor(centred[1] * (width - box_width + 1))
    return tf.stack([top, left, box_height, box_width], axis=-1)


def crop_and_resize(images: Any, boxes: Any, size: tuple[int, int]) -> Any:
    """Cut boxes from images and resize them bilinearly, pixel centres at half integers.

    Args:
        images: uint8 tensor (images, height, width, channels).
        boxes: float32 tensor (images, views, 4): top, left, height, width, in pixels.
        size: (height, width) of the result.

    Returns:
        uint8 tensor (images, views, *size, channels).
    """
    tf = tensorflow()
    # One mirrored pixel all around: a sample half a pixel outside then takes the edge's value.
    images = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="SYMMETRIC")
    shape = tf.shape(images)
    count, views = tf.shape(boxes)[0], tf.shape(boxes)[1]
    start, extent = tf.split(tf.reshape(boxes, [-1, 4]), 2, axis=1)
    target = tf.constant(size, tf.float32)
    last = tf.cast(shape[1:3] - 1, tf.float32)
    # The operation puts its first and last sample on the corners of a box given in [0, 1].
    step = extent / target
    corner = start + 0.5 * step + 0.5
    normalized = tf.concat([corner / last, (corner + step * (target - 1.0)) / last], axis=1)
    index = tf.repeat(tf.range(count), views)
    crops = tf.image.crop_and_resize(images, normalized, index, size)
    crops = tf.reshape(crops, tf.concat([[count, views], size, [images.shape[-1]]], axis=0))
    return tf.cast(tf.round(crops), tf.uint8)


def centre_crop(image: Any, size: tuple[int, int]) -> Any:
    """What an evaluation sees of an image: the middle, at 7/8 of the largest box that fits.

    Args:
        image: uint8 tensor (height, width, channels). If it has the wanted size it is unchanged.
        size: (height, width) of the result.

    Returns:
        uint8 tensor (*size, channels).
    """
    tf = tensorflow()

    def resized() -> Any:
        available = tf.cast(tf.shape(image)[:2], tf.float32)
        wanted = tf.constant(size, tf.float32)
        extent = tf.round(0.875 * wanted * tf.reduce_min(available / wanted))
        extent = tf.cast(tf.maximum(extent, 1.0), tf.int32)
        start = (tf.shape(image)[:2] - extent) // 2
        middle = tf.slice(image, [start[0], start[1], 0], [extent[0], extent[1], -1])
        pixels = tf.image.resize(middle, size, antialias=True)
        return tf.cast(tf.round(tf.clip_by_value(pixels, 0.0, 255.0)), tf.uint8)

    fits = tf.reduce_all(tf.equal(tf.shape(image)[:2], size))
    result = tf.cond(fits, lambda: image, resized)
    return tf.ensure_shape(result, (*size, image.shape[-1]))
