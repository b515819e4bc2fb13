"""Images of more than 8 bits a channel: how files store them, and what becomes black and white.

One rule holds for all images of a data set, so that they are scaled alike. With ``value_range``,
`config.data.range`, its two values become 0 and 255, values between them are scaled linearly, and
values beyond them are clipped. Without it only images that fill 16 bits can be used, by their upper
byte. Scans of 10 to 14 bits in files of 16, floating-point values and 32-bit integers would come
out black, dark or wrapped around: they count as broken until the range is set. Images of 8 bits are
used as they are. `stored_as` tells the depth where Pillow's mode alone does not.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageFile

from can_jax.utils.tensorflow import tensorflow

Range = tuple[float, float] | None
ADVICE = "set config.data.range=(low, high) to the values of black and white"
TOP_BIT = 2**15  # an image that fills 16 bits has a value from here on
WHITE = 2**16 - 1
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
SIZ = b"\xff\x4f\xff\x51"  # how the stream of a JPEG 2000 begins


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


class Stored(NamedTuple):
    """The values of a file.

    Attributes:
        bits: Of a channel.
        deep: Whether Pillow keeps more than the upper 8 of them.
        kind: A numpy type as which Pillow's values are to be read, or None.
        inverted: Whether 0 is white, which Pillow ignores above 8 bits.
        maximum: The value that Pillow has scaled to 65535.
    """

    bits: int
    deep: bool
    kind: type | None = None
    inverted: bool = False
    maximum: int = WHITE

    def values(self, pixels: np.ndarray, value_range: Range) -> np.ndarray:
        """Return the values in the file, given those that Pillow reads.

        The range of all 16 bits means each file's own white, as without a range.
        """
        if self.kind is not None:
            return pixels.view(self.kind)
        if value_range not in (None, (0.0, float(WHITE))) and self.maximum != WHITE:
            return np.rint(pixels * (self.maximum / WHITE))
        return pixels


def stored_as(image: Image.Image, encoded: bytes) -> Stored:
    """Return how an opened image, not loaded yet, is stored.

    Raises:
        ValueError: Pillow would read its values as others.
    """
    assert isinstance(image, ImageFile.ImageFile)
    deep = image.mode.startswith("I") or image.mode == "F"
    cut = any(";16" in str(tile[3]) for tile in image.tile)  # to the upper bytes
    plain = Stored(16 if deep or cut else 8, deep)
    if image.format == "TIFF":
        return _tiff(image, plain)
    if image.format == "PPM" and image.mode != "F":
        codec, _, _, arguments = image.tile[0]
        maximum = WHITE if deep else 255
        if codec.startswith("ppm") and isinstance(arguments, tuple):
            maximum = int(arguments[1])
        # Where Pillow scales colors to bytes, the file states their white, unless it is 65535.
        return plain._replace(bits=16 if deep or maximum == WHITE else 8, maximum=maximum)
    if image.format == "JPEG2000" and SIZ in encoded:
        precision = encoded[encoded.index(SIZ) + 42] % 128 + 1
        return plain._replace(bits=precision, maximum=2**precision - 1)
    return plain


def _tiff(image: Image.Image, plain: Stored) -> Stored:
    """Return how a TIFF is stored."""
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
