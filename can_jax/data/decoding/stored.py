"""The representation of an image's values in its file, where Pillow's mode does not reveal it."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from can_jax.data.decoding.depth import WHITE, Range

BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
SIZ = b"\xff\x4f\xff\x51"  # the first markers of a JPEG 2000 codestream, SOC and SIZ


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
