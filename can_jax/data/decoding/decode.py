"""Decoders that turn encoded images into uint8 pixels.

TensorFlow decodes JPEG, PNG and WebP in parallel, without running Python code. Pillow decodes the
images that TensorFlow rejects, such as GIF, BMP, TIFF, AVIF and unusual variants of JPEG, PNG and
WebP. `can_jax.data.decoding.open_image` limits Pillow to a few formats.

TensorFlow and Pillow both drop alpha unless four channels are requested. Only the first frame of an
animation is decoded. `can_jax.data.decoding.depth` describes how images of more than 8 bits a
channel are converted.

The TensorFlow functions of this module also decode the arrays that
`can_jax.data.decoding.array_bytes` encodes.
"""

import functools
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from can_jax.data.decoding.array_bytes import ARRAY, ARRAY_HEADER
from can_jax.data.decoding.depth import (
    Range,
    check_reduced,
    tensor_to_eight_bits,
    to_eight_bits,
)
from can_jax.data.decoding.open_image import MOST_PIXELS, open_image
from can_jax.data.decoding.stored import stored_as
from can_jax.utils.tensorflow import tensorflow

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's modes by number of channels
FILE_CHANNELS = tuple(MODES)  # the channel counts to which image files can be decoded
# Pillow converts these modes only to the intermediate mode given here.
INTERMEDIATE = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB"}
REDUCTIONS = (1, 2, 4, 8)  # factors by which libjpeg can downscale during decoding
ORIENTATION = 0x0112  # EXIF tag


def native_size(encoded: Any, max_pixels: int) -> Any:
    """Return the (height, width) in the header of a JPEG, PNG or WebP file or of an encoded array,
    as an int32 tensor (2,).

    Evaluating the returned tensor raises a TensorFlow error if ``encoded`` has an unsupported
    format, no pixels, or more than ``max_pixels`` pixels.
    """
    tf = tensorflow()

    def png() -> Any:
        sides = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False)
        return sides[1], sides[0]

    def jpeg() -> Any:
        shape = tf.image.extract_jpeg_shape(encoded)
        return shape[0], shape[1]

    def array() -> Any:
        return tuple(tf.unstack(_array_shape(encoded)[:2], num=2))

    webp = functools.partial(_webp_sides, encoded)
    sides = _kind_switch(encoded, jpeg=jpeg, png=png, webp=webp, array=array)
    size = tf.stack(sides)
    pixels = tf.reduce_prod(tf.cast(size, tf.int64))
    limit = tf.debugging.Assert((pixels > 0) & (pixels <= max_pixels), ["pixels:", pixels])
    with tf.control_dependencies([limit] if limit is not None else []):
        return tf.identity(size)


def reduction(encoded: Any, largest: Any) -> Any:
    """Return the factor by which to downscale an image during decoding.

    For a JPEG, the downscaling factor is the largest of 1, 2, 4 and 8 that does not exceed
    ``largest``, an int32 scalar. For formats other than JPEG, the downscaling factor is 1. The
    sides of the downscaled image are the original sides divided by the factor, rounded up.
    """
    tf = tensorflow()
    allowed = tf.reduce_max(tf.where(tf.constant(REDUCTIONS) <= largest, REDUCTIONS, 1))
    others = dict.fromkeys(("png", "webp", "array"), lambda: 1)
    return _kind_switch(encoded, jpeg=lambda: allowed, **others)


def native_pixels(
    encoded: Any,
    channels: int,
    ratio: Any = 1,
    window: Any = None,
    value_range: Range = None,
) -> Any:
    """Decode all or part of a JPEG, PNG or WebP file, or of an encoded array, to a uint8 tensor
    (height, width, channels).

    Args:
        encoded: The bytes of the image file or of the encoded array.
        channels: The number of channels of the result: 1, 3 or 4 for image files; the number of
            channels of the array for encoded arrays.
        ratio: The downscaling factor that `reduction` returned. A larger factor speeds up the
            decoding of a JPEG.
        window: The (top, left, height, width) of the part to decode, in pixels of the downscaled
            image, as an int32 tensor (4,). If ``window`` is None, the whole image is decoded. For a
            JPEG, a smaller window decodes faster.
        value_range: The two pixel values that are mapped to 0 and 255 in images of more than 8 bits
            a channel; None if `config.data.range` is unset.
    """
    tf = tensorflow()
    colors = min(channels, 3)
    # The accurate transform reproduces Pillow's pixels exactly, and decodes about 3 % slower.
    method = {"channels": colors, "dct_method": "INTEGER_ACCURATE"}

    # TensorFlow accepts only a constant as the factor, so each factor has its own branch.
    def reduced(constant: int) -> Any:
        if window is None:
            return tf.io.decode_jpeg(encoded, ratio=constant, **method)
        return tf.image.decode_and_crop_jpeg(encoded, window, ratio=constant, **method)

    def jpeg() -> Any:
        branch = tf.argmax(tf.equal(REDUCTIONS, ratio), output_type=tf.int32)
        pixels = tf.switch_case(branch, [functools.partial(reduced, r) for r in REDUCTIONS])
        opaque = [[0, 0], [0, 0], [0, channels - colors]]
        return tf.pad(pixels, opaque, constant_values=255) if channels == 4 else pixels

    def png() -> Any:
        def deep() -> Any:
            values = tf.io.decode_png(encoded, channels, dtype=tf.uint16)
            return tensor_to_eight_bits(values, value_range)

        is_deep = tf.equal(tf.strings.substr(encoded, 24, 1), b"\x10")  # the header's bit depth
        return part(tf.cond(is_deep, deep, lambda: tf.io.decode_png(encoded, channels)))

    def webp() -> Any:
        pixels = tf.io.decode_image(encoded, max(channels, 3), expand_animations=False)
        pixels.set_shape((None, None, max(channels, 3)))
        return part(tf.image.rgb_to_grayscale(pixels) if channels == 1 else pixels)

    def part(pixels: Any) -> Any:
        if window is None:
            return pixels
        start, extent = tf.split(window, 2)
        return tf.slice(pixels, tf.pad(start, [[0, 1]]), tf.concat([extent, [-1]], axis=0))

    def array() -> Any:
        content = tf.io.decode_raw(tf.strings.substr(encoded, ARRAY_HEADER, -1), tf.uint8)
        return part(tf.reshape(content, _array_shape(encoded)))

    files = {"jpeg": jpeg, "png": png, "webp": webp} if channels in FILE_CHANNELS else {}
    pixels = _kind_switch(encoded, **files, array=array)
    return tf.ensure_shape(pixels, (None, None, channels))


def _kind_switch(encoded: Any, **branches: Any) -> Any:
    """Return the result of the function in ``branches`` that matches the format of ``encoded``."""
    tf = tensorflow()
    start = tf.strings.substr(encoded, 0, 2)
    tags = {"jpeg": b"\xff\xd8", "png": b"\x89P", "webp": b"RI", "array": ARRAY}
    matches = tf.stack([tf.equal(start, tags[name]) for name in branches])
    recognized = tf.debugging.Assert(tf.reduce_any(matches), ["not a JPEG, PNG or WebP"])
    with tf.control_dependencies([recognized] if recognized is not None else []):
        return tf.switch_case(tf.argmax(matches, output_type=tf.int32), list(branches.values()))


def _array_shape(encoded: Any) -> Any:
    """Return the (height, width, channels) of an encoded array, as an int32 tensor (3,)."""
    tf = tensorflow()
    sides = tf.strings.substr(encoded, len(ARRAY), ARRAY_HEADER - len(ARRAY))
    return tf.ensure_shape(tf.io.decode_raw(sides, tf.int32), (3,))


def _webp_sides(encoded: Any) -> tuple[Any, Any]:
    """Return the height and width from a lossy, lossless or extended WebP header (RFC 9649)."""
    tf = tensorflow()
    byte = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, 0, 30), tf.uint8), tf.int32)

    def uint16(offset: int) -> Any:
        return byte[offset] + 256 * byte[offset + 1]

    extended = 1 + uint16(27) + 65536 * byte[29], 1 + uint16(24) + 65536 * byte[26]
    lossy = uint16(28) % 2**14, uint16(26) % 2**14
    high = uint16(21) // 2**14 + 4 * uint16(23)
    lossless = 1 + high % 2**14, 1 + uint16(21) % 2**14
    form = tf.strings.substr(encoded, 12, 4)
    sides = tf.where(form == b"VP8 ", lossy, tf.where(form == b"VP8L", lossless, extended))
    return sides[0], sides[1]


def orientation(encoded: bytes, max_pixels: int = MOST_PIXELS) -> np.int32:
    """Return the EXIF orientation of an image file, from 1 to 8; 1 (upright) if the orientation is
    missing or invalid.

    Args:
        encoded: The bytes of the image file.
        max_pixels: The maximum number of pixels, width times height, that `open_image` accepts.
    """
    try:
        with open_image(encoded, max_pixels) as image:
            value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken metadata raises many types of exception
        value = 1
    return np.int32(value if value in range(1, 9) else 1)


def orient(pixels: Any, value: Any) -> Any:
    """Rotate and mirror an image tensor (height, width, channels) to upright, given its EXIF
    orientation, 1 to 8."""
    tf = tensorflow()
    mirrored = (value == 2) | (value == 4) | (value == 5) | (value == 7)
    quarter_turns = tf.gather([0, 0, 0, 2, 2, 1, 3, 3, 1], value)  # counterclockwise
    turned = tf.cond(mirrored, lambda: tf.reverse(pixels, [1]), lambda: pixels)
    return tf.image.rot90(turned, quarter_turns)


def pillow_pixels(
    encoded: bytes, channels: int, max_pixels: int, exif: bool, value_range: Range = None
) -> UInt8[np.ndarray, "height width channels"]:
    """Decode an image file with Pillow to a uint8 array (height, width, channels).

    Args:
        encoded: The bytes of the image file.
        channels: The number of channels of the result: 1, 3 or 4.
        max_pixels: The maximum number of pixels, width times height, that `open_image` accepts.
        exif: Whether to rotate and mirror the image by its EXIF orientation. Pillow rotates and
            mirrors TIFFs even if ``exif`` is False.
        value_range: The two pixel values that are mapped to 0 and 255 in images of more than 8 bits
            a channel; None if `config.data.range` is unset.

    Raises:
        Exception: The file cannot be decoded, or `can_jax.data.decoding.depth` rejects its values.
            Pillow raises exceptions of many types.
    """
    with open_image(encoded, max_pixels) as image:
        stored = stored_as(image, encoded)
        image.load()
        upright = ImageOps.exif_transpose(image) if exif else image
        if stored.deep:
            values = stored.values(np.asarray(upright), value_range)
            gray = to_eight_bits(values, value_range)
            upright = Image.fromarray(255 - gray if stored.inverted else gray)
        elif stored.bits > 8:
            colors = np.asarray(upright.convert("RGB"))  # without alpha
            check_reduced(colors, value_range, stored.maximum)
        return pixels_of(upright, channels)


def pixels_of(image: Image.Image, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    """Convert a Pillow image to a uint8 array (height, width, channels).

    Args:
        image: The image, with at most 8 bits a channel.
        channels: The number of channels of the result: 1, 3 or 4.
    """
    if image.mode in INTERMEDIATE:
        image = image.convert(INTERMEDIATE[image.mode])
    pixels = np.asarray(image.convert(MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)
