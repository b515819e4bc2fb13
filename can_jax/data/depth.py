"""Images of more than 8 bits a channel: which values become black and white.

One rule holds for all images of a data set, so that they are scaled alike. With ``value_range``,
`config.data.range`, its two values become 0 and 255, values between them are scaled linearly, and
values beyond them are clipped. Without it only images that fill 16 bits can be used, by their upper
byte. Scans of 10 to 14 bits in files of 16, floating-point values and 32-bit integers would come
out black, dark or wrapped around: they count as broken until the range is set. Images of 8 bits are
used as they are.
"""

from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

from can_jax.tf import tensorflow

Range = tuple[float, float] | None
ADVICE = "set config.data.range=(low, high) to the values of black and white"
TOP_BIT = 2**15  # an image that fills 16 bits has a value from here on


def check_range(value: Any) -> Range:
    """Return a setting of `config.data.range` as a pair of floats, or None.

    Raises:
        ValueError: It is not two finite numbers, the first the smaller one.
    """
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, tuple | list) else (value,)
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in pair)
    if len(pair) != 2 or not numbers or not np.isfinite(pair).all() or pair[0] >= pair[1]:
        raise ValueError(f"{value!r}: give two numbers (low, high), low below high")
    return float(pair[0]), float(pair[1])


def to_eight_bits(
    values: Shaped[np.ndarray, "*shape"], value_range: Range
) -> UInt8[np.ndarray, "*shape"]:
    """Scale values of more than 8 bits to bytes.

    Raises:
        ValueError: They are not finite, or fit no rule; says what to set.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("has values that are not finite")
    if value_range is not None:
        low, high = value_range
        scaled = (values.astype(np.float64) - low) * (255 / (high - low))
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    if values.dtype.kind == "f":
        raise ValueError(f"has floating-point values; {ADVICE}")
    least, most = int(values.min()), int(values.max())
    if least < 0 or values.dtype.itemsize == 1 or not TOP_BIT <= most < 2 * TOP_BIT:
        raise ValueError(f"has values from {least} to {most}, which do not fill 16 bits; {ADVICE}")
    return (values >> 8).astype(np.uint8)


def tensor_to_eight_bits(values: Any, value_range: Range) -> Any:
    """Scale a uint16 tensor (height, width, channels) to uint8; a fourth channel is alpha, whose
    upper byte is used. Evaluating it fails where `to_eight_bits` raises."""
    tf = tensorflow()
    upper = tf.cast(tf.bitwise.right_shift(values, tf.constant(8, tf.uint16)), tf.uint8)
    colors = values[..., :3]
    if value_range is not None:
        low, high = value_range
        scaled = tf.round((tf.cast(colors, tf.float32) - low) * (255 / (high - low)))
        scaled = tf.cast(tf.clip_by_value(scaled, 0.0, 255.0), tf.uint8)
        return tf.concat([scaled, upper[..., 3:]], axis=-1)
    most = tf.reduce_max(tf.cast(colors, tf.int32))
    filled = tf.debugging.Assert(most >= TOP_BIT, ["values up to", most, "do not fill 16 bits"])
    with tf.control_dependencies([filled] if filled is not None else []):
        return tf.identity(upper)


def check_reduced(pixels: UInt8[np.ndarray, "*shape"], value_range: Range) -> None:
    """Refuse an image of 16 bits a channel of which Pillow gives the upper bytes only.

    Raises:
        ValueError: The upper bytes do not tell what the image shows.
    """
    if value_range not in (None, (0.0, 65535.0)):
        raise ValueError(
            f"has 16 bits a channel, which config.data.range={value_range} can scale only in a "
            "PNG, or in a gray image"
        )
    if pixels.max(initial=0) < TOP_BIT >> 8:
        raise ValueError(f"has values that do not fill its 16 bits a channel; {ADVICE}")
