"""The bit depth and value scale of image files, which Pillow's mode does not always reveal."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from can_jax.data.decoding.depth import WHITE, Range

BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
SIZ = b"\xff\x4f\xff\x51"  # the first markers of a JPEG 2000 codestream, SOC and SIZ
AV1C = b"av1C"  # the name of the AVIF box that states the bit depth


class Stored(NamedTuple):
    """The bit depth and value scale of an image in its file.

    Attributes:
        bits: The number of bits per channel.
        deep: Whether the values that Pillow returns must be scaled to unsigned 8-bit integers.
        dtype: The correct dtype of the values, if Pillow returns another dtype of the same size;
            None if Pillow's dtype is correct.
        inverted: Whether 0 means white. Pillow does not invert white-is-zero images of more than 8
            bits a channel.
        maximum: The largest value that the header of a PPM, JPEG 2000 or AVIF file allows; 65535
            for other formats. Pillow scales ``maximum`` to 65535 if ``deep`` is True.
    """

    bits: int
    deep: bool
    dtype: type | None = None
    inverted: bool = False
    maximum: int = WHITE

    def values(self, pixels: np.ndarray, value_range: Range) -> np.ndarray:
        """Return the values stored in the file, given the array that Pillow returns.

        If ``value_range`` is None or (0, 65535), the values remain as scaled by Pillow, which maps
        each file's ``maximum`` to 65535.
        """
        if self.dtype is not None:
            return pixels.view(self.dtype)
        if value_range not in (None, (0.0, float(WHITE))) and self.maximum != WHITE:
            return np.rint(pixels * (self.maximum / WHITE))
        return pixels


def stored_as(image: Image.Image, encoded: bytes) -> Stored:
    """Return the stored bit depth and value scale of an image whose pixels are not loaded yet.

    Args:
        image: The image, opened by Pillow from ``encoded``.
        encoded: The bytes of the image file.

    Raises:
        ValueError: The image is a TIFF with several signed channels, which Pillow misreads.
    """
    assert isinstance(image, ImageFile.ImageFile)
    deep = image.mode.startswith("I") or image.mode == "F"
    # Pillow's decoders of these raw modes read 16 bits and keep the upper byte.
    upper_byte = any(";16" in str(tile[3]) for tile in image.tile)
    plain = Stored(16 if deep or upper_byte else 8, deep)
    if image.format == "TIFF":
        return _tiff(image, plain)
    if image.format == "PPM" and image.mode != "F":
        codec, _, _, arguments = image.tile[0]
        maximum = WHITE if deep else 255
        if codec.startswith("ppm") and isinstance(arguments, tuple):
            maximum = int(arguments[1])
        # Pillow scales colors to 8 bits by the header's maximum.
        return plain._replace(bits=16 if deep or maximum > 255 else 8, maximum=maximum)
    if image.format == "JPEG2000" and SIZ in encoded:
        precision = encoded[encoded.index(SIZ) + 42] % 128 + 1
        return plain._replace(bits=precision, maximum=2**precision - 1)
    if image.format == "AVIF" and AV1C in encoded:
        flags = encoded[encoded.index(AV1C) + 6]
        bits = 8 if not flags & 64 else 12 if flags & 32 else 10
        return plain._replace(bits=bits, maximum=2**bits - 1)
    return plain


def _tiff(image: Image.Image, plain: Stored) -> Stored:
    """Return the stored bit depth and value scale of a TIFF, read from its tags."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits = int(np.max(tags.get(BITS, 1)))
    signed = int(np.max(tags.get(SAMPLE_FORMAT, 1))) == 2
    if signed and not plain.deep:
        if image.mode != "L":
            raise ValueError(f"has several signed channels of {bits} bits, which Pillow misreads")
        return Stored(bits, True, np.int8, tags.get(PHOTOMETRIC) == 0)
    unsigned = image.mode == "I" and bits == 32 and not signed
    inverted = plain.deep and tags.get(PHOTOMETRIC) == 0
    return Stored(bits, plain.deep, np.uint32 if unsigned else None, inverted)
