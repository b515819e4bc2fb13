"""A restricted `PIL.Image.open` that accepts only a few formats and a limited number of pixels.

All images that Pillow decodes are opened by this module. Pillow detects the format from the content
and supports more than forty formats; for PostScript it starts Ghostscript. Only the first image of
an animation or multi-image file is decoded.
"""

import contextlib
import functools
import io
import struct
import threading
from collections.abc import Iterator

from PIL import Image

# Pillow's names of the formats. JPEG includes MPO; PPM is the family of PBM, PGM, PNM and PFM.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MOST_PIXELS = 50_000_000  # the default limit on width times height
TEXT = 2**20  # the maximum bytes of text before a GIF's first image, Pillow's limit for PNG texts


@functools.cache
def _known() -> tuple[str, ...]:
    """Return the formats in `FORMATS` that the installed Pillow supports; old versions lack
    AVIF."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


class _PillowLimit:
    """Pillow's limit on pixels, which `at_least` increases while a context is active.

    All threads of a process share Pillow's limit. Pillow applies the limit when opening an image,
    and when decoding a tile of a TIFF.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._usual: int | None = None
        self._allowed: list[int] = []

    @contextlib.contextmanager
    def at_least(self, pixels: int) -> Iterator[None]:
        """Increase Pillow's limit on pixels to at least ``pixels`` while the context is active."""
        with self._lock:
            if not self._allowed:
                self._usual = Image.MAX_IMAGE_PIXELS
            self._allowed.append(pixels)
            self._apply()
        try:
            yield
        finally:
            with self._lock:
                self._allowed.remove(pixels)
                self._apply()

    def _apply(self) -> None:
        if self._usual is not None:  # otherwise the program has disabled the limit
            Image.MAX_IMAGE_PIXELS = max([self._usual, *self._allowed])


_LIMIT = _PillowLimit()


@contextlib.contextmanager
def open_image(encoded: bytes, max_pixels: int = MOST_PIXELS) -> Iterator[Image.Image]:
    """Open an encoded image with Pillow, without decoding its pixels, and close it when the context
    ends.

    Args:
        encoded: The bytes of the image file.
        max_pixels: The maximum number of pixels, width times height. If ``max_pixels`` exceeds
            `PIL.Image.MAX_IMAGE_PIXELS`, Pillow's limit is increased while the context is active.

    Raises:
        Exception: The format is not supported, the image is too large, or the file is damaged.
            Pillow raises exceptions of many types.
    """
    _check_text(encoded)
    # Pillow allocates images of the stated sizes while it opens a file.
    for width, height in _stated_sizes(encoded):
        _check_size(width, height, max_pixels)
    with _LIMIT.at_least(max_pixels), _identified(encoded) as image:
        _check_size(image.width, image.height, max_pixels)
        yield image


def _identified(encoded: bytes) -> Image.Image:
    """Open an encoded image with Pillow. The error for an unsupported format lists the supported
    formats."""
    try:
        return Image.open(io.BytesIO(encoded), formats=_known())
    except Image.UnidentifiedImageError:
        if encoded[:4] in TIFF:
            raise ValueError(
                "is a TIFF that Pillow cannot read, such as one with many bands or 64-bit values"
            ) from None
        raise ValueError(f"cannot identify the format as one of {', '.join(FORMATS)}") from None


def _check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise ValueError if an image has more than ``max_pixels`` pixels."""
    if width * height > max_pixels:
        raise ValueError(f"has {width} x {height} pixels, more than the limit of {max_pixels}")


def _check_text(encoded: bytes) -> None:
    """Reject a GIF with more than 1 MiB of comments and other extensions before its first image.

    Pillow may take minutes to concatenate megabytes of GIF comments. For a PNG, Pillow itself
    limits each text chunk to 1 MiB, and all text chunks together to 64 MiB.
    """
    if encoded[:3] != b"GIF" or len(encoded) < 13:
        return
    colors = encoded[10]
    start = at = 13 + (3 * 2 ** (colors % 8 + 1) if colors & 128 else 0)
    while encoded[at : at + 1] == b"!":  # an extension: a label, then length-prefixed blocks
        at += 2
        while at < len(encoded) and encoded[at]:
            at += 1 + encoded[at]
            if at - start > TEXT:
                raise ValueError(f"has more than {TEXT} bytes of text before its first image")
        at += 1


def _stated_sizes(encoded: bytes) -> Iterator[tuple[int, int]]:
    """Yield (width, height) from the header of an extended WebP, or from the header of each image
    in an ICO.

    Pillow determines the size of a WebP only when it starts to decode the file. For an ICO, Pillow
    trusts the file's directory, whose sizes may differ from those in the headers of the images.
    """
    if encoded[:4] == b"RIFF" and encoded[12:16] == b"VP8X" and len(encoded) >= 30:
        yield (
            1 + int.from_bytes(encoded[24:27], "little"),
            1 + int.from_bytes(encoded[27:30], "little"),
        )
    if encoded[:4] == b"\0\0\1\0" and len(encoded) >= 6:
        for entry in range(6, 6 + 16 * int.from_bytes(encoded[4:6], "little"), 16):
            (start,) = struct.unpack("<I", encoded[entry + 12 : entry + 16].ljust(4, b"\0"))
            header = encoded[start : start + 24].ljust(24, b"\0")
            if header[:4] == b"\x89PNG":
                yield struct.unpack(">II", header[16:24])
            else:
                width, height = struct.unpack("<ii", header[4:12])
                yield abs(width), abs(height) // 2  # the height includes that of the mask
