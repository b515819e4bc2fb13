"""Conversion of images with more than 8 bits a channel to 8 bits a channel.

In a data set, all images of more than 8 bits a channel are scaled by the same rule. ``value_range``
(`config.data.range`) holds the two pixel values that are mapped to 0 and 255. Values inside the
range are scaled linearly, and values outside the range are clipped.

Without a range, the upper byte of each 16-bit value is used, and the largest value of an image must
be 2**15 to 2**16 - 1. Other images of more than 8 bits, and images of negative or floating-point
values, count as undecodable. 12-bit scans stored in 16 bits would become too dark if only their
upper bytes were used. A value of 2**16 or more, shifted right by 8 bits, would overflow uint8.

If the header of a PPM, JPEG 2000 or AVIF file states a maximum from 2**8 to 2**16 - 2, Pillow
scales the maximum to 2**16 - 1. If Pillow returns 8-bit values, as for color images, it scales the
maximum to 255. Without a range, these 8-bit values are used even if all of them are small.

Images of unsigned 8-bit values are used unchanged, with or without a range.
`can_jax.data.decoding.stored` determines the bit depth of files whose Pillow mode does not reveal
it.
"""

from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

from can_jax.utils.tensorflow import tensorflow

Range = tuple[float, float] | None
ADVICE = "set config.data.range=(low, high) to the values that are black and white"
TOP_BIT = 2**15  # images whose values are all below it do not use the full range of 16 bits
WHITE = 2**16 - 1


def to_eight_bits(
    values: Shaped[np.ndarray, "*shape"], value_range: Range
) -> UInt8[np.ndarray, "*shape"]:
    """Scale image values of a type other than uint8 to uint8.

    Raises:
        ValueError: A value is not finite. If ``value_range`` is None, ValueError is also raised for
            floats, 8-bit integers, negative values, and a maximum outside 2**15 to 2**16 - 1.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("has values that are not finite")
    if value_range is not None:
        low, high = value_range
        scaled = (values.astype(np.float64) - low) * (255 / (high - low))
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    if values.dtype.kind == "f":
        raise ValueError(f"has floating-point values; {ADVICE}")
    smallest, largest = int(values.min()), int(values.max())
    if smallest < 0 or values.dtype.itemsize == 1 or not TOP_BIT <= largest < 2 * TOP_BIT:
        raise ValueError(
            f"has values from {smallest} to {largest}, not the full range of 16 bits; {ADVICE}"
        )
    return (values >> 8).astype(np.uint8)


def tensor_to_eight_bits(values: Any, value_range: Range) -> Any:
    """Scale a uint16 tensor (height, width, channels) to uint8, as `to_eight_bits` does with
    arrays.

    A fourth channel is alpha; its upper byte is used, whatever ``value_range`` is.
    Evaluating the result raises a TensorFlow error if ``value_range`` is None and all color values
    are below 2**15.
    """
    tf = tensorflow()
    upper = tf.cast(tf.bitwise.right_shift(values, tf.constant(8, tf.uint16)), tf.uint8)
    colors = values[..., :3]
    if value_range is not None:
        low, high = value_range
        scaled = tf.round((tf.cast(colors, tf.float32) - low) * (255 / (high - low)))
        scaled = tf.cast(tf.clip_by_value(scaled, 0.0, 255.0), tf.uint8)
        return tf.concat([scaled, upper[..., 3:]], axis=-1)
    largest = tf.reduce_max(tf.cast(colors, tf.int32))
    filled = tf.debugging.Assert(
        largest >= TOP_BIT, ["no value is 2**15 or more; the largest is", largest]
    )
    with tf.control_dependencies([filled] if filled is not None else []):
        return tf.identity(upper)


def check_reduced(
    pixels: UInt8[np.ndarray, "*shape"], value_range: Range, maximum: int = WHITE
) -> None:
    """Reject a color image of more than 8 bits a channel whose conversion needs the lower bits,
    because Pillow returns only the upper bits.

    Args:
        pixels: The image as Pillow returns it, with ``maximum`` scaled to 255.
        value_range: The two pixel values that are mapped to 0 and 255; None if `config.data.range`
            is unset.
        maximum: The largest value that the header of the file allows.

    Raises:
        ValueError: ``value_range`` is a range other than (0, 65535) and (0, ``maximum``). If
            ``value_range`` is None, ValueError is also raised for a ``maximum`` of 65535 with all
            values below 2**15.
    """
    allowed = dict.fromkeys([(0, WHITE), (0, maximum)])  # equal if the file uses all 16 bits
    if value_range is not None and value_range not in allowed:
        raise ValueError(
            f"is a color image: outside PNG files, config.data.range of color images must be "
            f"{' or '.join(map(str, allowed))}, not {value_range}"
        )
    if maximum == WHITE and value_range is None and pixels.max(initial=0) < TOP_BIT >> 8:
        raise ValueError(f"has 16 bits a channel, but all its values are below {TOP_BIT}; {ADVICE}")
