"""Conversion of images of more than 8 bits a channel to 8 bits.

One rule applies to all images of a data set, so that they are scaled alike. With ``value_range``
(`config.data.range`), its two values become 0 and 255. Values between them are scaled linearly, and
values outside are clipped.

Without a range, only images that fill 16 bits are accepted, and their upper byte is used. Scans of
10 to 14 bits stored in 16, floating-point values and 32-bit integers would come out black, dark or
wrapped around. They count as undecodable until the range is set.

Images of 8 bits are used as they are. `can_jax.data.decoding.stored` determines the depth where
Pillow's mode does not reveal it.
"""

from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

from can_jax.utils.tensorflow import tensorflow

Range = tuple[float, float] | None
ADVICE = "set config.data.range=(low, high) to the values of black and white"
TOP_BIT = 2**15  # an image that fills 16 bits has a value of at least this
WHITE = 2**16 - 1


def to_eight_bits(
    values: Shaped[np.ndarray, "*shape"], value_range: Range
) -> UInt8[np.ndarray, "*shape"]:
    """Scale values of more than 8 bits to uint8.

    Raises:
        ValueError: The values are not finite, or require a range that is not set.
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
            f"has values from {smallest} to {largest}, which do not fill 16 bits; {ADVICE}"
        )
    return (values >> 8).astype(np.uint8)


def tensor_to_eight_bits(values: Any, value_range: Range) -> Any:
    """Scale a uint16 tensor (height, width, channels) to uint8; the tensor form of `to_eight_bits`.

    A fourth channel is alpha, of which the upper byte is used. Evaluating the result fails where
    `to_eight_bits` raises.
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
        largest >= TOP_BIT, ["values up to", largest, "do not fill 16 bits"]
    )
    with tf.control_dependencies([filled] if filled is not None else []):
        return tf.identity(upper)


def check_reduced(pixels: UInt8[np.ndarray, "*shape"], value_range: Range) -> None:
    """Reject a 16-bit image that cannot be used from its upper bytes, which are all that Pillow
    returns.

    Raises:
        ValueError: The range requires the lower bytes, or the image does not fill 16 bits.
    """
    if value_range not in (None, (0.0, 65535.0)):
        raise ValueError(
            f"has 16 bits a channel, which config.data.range={value_range} can scale only in a "
            "PNG, or in a gray image"
        )
    if pixels.max(initial=0) < TOP_BIT >> 8:
        raise ValueError(f"has values that do not fill its 16 bits a channel; {ADVICE}")
