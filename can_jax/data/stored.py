"""How a file stores its values, where Pillow's mode alone does not tell."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from can_jax.data.depth import Range

WHITE = 2**16 - 1
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SIZ = b"\xff\x4f\xff\x51"  # how the stream of a JPEG 2000 begins


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


def open_image(encoded: bytes) -> Image.Image:
    """Open a file with Pillow.

    Raises:
        Exception: Pillow does not read it; for a TIFF the message says why.
    """
    try:
        return Image.open(io.BytesIO(encoded))
    except Image.UnidentifiedImageError:
        if encoded[:4] in TIFF:
            raise ValueError(
                "is a TIFF that Pillow does not read, such as one of many bands or 64-bit values"
            ) from None
        raise


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
    if image.format == "SGI":
        return plain._replace(bits=8 * encoded[3])
    if image.format == "JPEG2000" and SIZ in encoded:
        precision = encoded[encoded.index(SIZ) + 42] % 128 + 1
        return plain._replace(bits=precision, maximum=2**precision - 1)
    if image.format == "FITS" and deep:
        raise ValueError("is a FITS of more than 8 bits, whose scale Pillow ignores")
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
