"""Conversion of images of more than 8 bits a channel to 8 bits.

One rule applies to all images of a data set, so that they are scaled alike. With ``value_range``
(`config.data.range`), its two values become 0 and 255. Values between them are scaled linearly, and
values outside are clipped.

Without a range, only images that fill 16 bits are accepted, and their upper byte is used. Scans of
10 to 14 bits stored in 16, floating-point values and 32-bit integers would come out black, dark or
wrapped around. They count as undecodable until the range is set.

Images of 8 bits are used as they are. `stored_as` determines the depth where Pillow's mode does not
reveal it.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageFile

from can_jax.utils.tensorflow import tensorflow

Range = tuple[float, float] | None
ADVICE = "set config.data.range=(low, high) to the values of black and white"
TOP_BIT = 2**15  # an image that fills 16 bits has a value of at least this
WHITE = 2**16 - 1
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
SIZ = b"\xff\x4f\xff\x51"  # the first markers of a JPEG 2000 codestream, SOC and SIZ


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


class Stored(NamedTuple):
    """The representation of an image's values in its file.

    Attributes:
        bits: The bits per channel.
        deep: Whether Pillow retains more than the upper 8 bits.
        kind: The numpy type as which to reinterpret Pillow's values, or None.
        inverted: Whether 0 is white, which Pillow ignores above 8 bits.
        maximum: The value in the file that Pillow scales to 65535.
    """

    bits: int
    deep: bool
    kind: type | None = None
    inverted: bool = False
    maximum: int = WHITE

    def values(self, pixels: np.ndarray, value_range: Range) -> np.ndarray:
        """Return the values stored in the file, given those that Pillow returns.

        A range of (0, 65535) keeps Pillow's scaling, in which each file's own maximum is white.
        """
        if self.kind is not None:
            return pixels.view(self.kind)
        if value_range not in (None, (0.0, float(WHITE))) and self.maximum != WHITE:
            return np.rint(pixels * (self.maximum / WHITE))
        return pixels


def stored_as(image: Image.Image, encoded: bytes) -> Stored:
    """Return how an image is stored, before its pixels are loaded.

    Args:
        image: The image, opened by Pillow from ``encoded``.
        encoded: The content of the file.

    Raises:
        ValueError: Pillow would misread the values.
    """
    assert isinstance(image, ImageFile.ImageFile)
    deep = image.mode.startswith("I") or image.mode == "F"
    # The decoder reads 16 bits and keeps the upper byte.
    cut = any(";16" in str(tile[3]) for tile in image.tile)
    plain = Stored(16 if deep or cut else 8, deep)
    if image.format == "TIFF":
        return _tiff(image, plain)
    if image.format == "PPM" and image.mode != "F":
        codec, _, _, arguments = image.tile[0]
        maximum = WHITE if deep else 255
        if codec.startswith("ppm") and isinstance(arguments, tuple):
            maximum = int(arguments[1])
        # Pillow scales colors from the maximum in the header to bytes, unless that is 65535.
        return plain._replace(bits=16 if deep or maximum == WHITE else 8, maximum=maximum)
    if image.format == "JPEG2000" and SIZ in encoded:
        precision = encoded[encoded.index(SIZ) + 42] % 128 + 1
        return plain._replace(bits=precision, maximum=2**precision - 1)
    return plain


def _tiff(image: Image.Image, plain: Stored) -> Stored:
    """Return how a TIFF is stored, from its tags."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits = int(np.max(tags.get(BITS, 1)))
    signed = int(np.max(tags.get(SAMPLE_FORMAT, 1))) == 2
    if signed and not plain.deep:
        if image.mode != "L":
            raise ValueError(f"has signed values of {bits} bits in several channels")
        return Stored(bits, True, np.int8, tags.get(PHOTOMETRIC) == 0)
    unsigned = image.mode == "I" and bits == 32 and not signed
    inverted = plain.deep and tags.get(PHOTOMETRIC) == 0
    return Stored(bits, plain.deep, np.uint32 if unsigned else None, inverted)
