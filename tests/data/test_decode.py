"""Every kind of file against Pillow, natively or by Pillow itself."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from can_jax.data.decoding import decode
from can_jax.utils.tensorflow import tensorflow

tf = tensorflow()
LIMIT = 10**6
RNG = np.random.default_rng(0)
SMOOTH = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((61, 43))


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def natively(encoded, channels=3, **options):
    size = decode.native_size(encoded, LIMIT).numpy()
    pixels = decode.native_pixels(encoded, channels, **options).numpy()
    return size, pixels


NATIVE = {
    "jpeg": saved(SMOOTH, "jpeg", quality=95),
    "progressive jpeg": saved(SMOOTH, "jpeg", progressive=True),
    "grey jpeg": saved(SMOOTH.convert("L"), "jpeg"),
    "png": saved(SMOOTH, "png"),
    "grey png": saved(SMOOTH.convert("L"), "png"),
    "bilevel png": saved(SMOOTH.convert("1"), "png"),
    "palette png": saved(SMOOTH.convert("P"), "png"),
    "alpha png": saved(SMOOTH.convert("RGBA"), "png"),
    "lossy webp": saved(SMOOTH, "webp", quality=90),
    "lossless webp": saved(SMOOTH, "webp", lossless=True),
    "extended webp": saved(SMOOTH, "webp", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
}
OTHERS = {
    "gif": saved(SMOOTH, "gif"),
    "bmp": saved(SMOOTH, "bmp"),
    "palette bmp": saved(SMOOTH.convert("P"), "bmp"),
    "tiff": saved(SMOOTH, "tiff"),
    "ppm": saved(SMOOTH, "ppm"),
    "animated webp": saved(SMOOTH, "webp", save_all=True, append_images=[SMOOTH.rotate(90)]),
}


@pytest.mark.parametrize("name", NATIVE)
def test_native_pixels_are_those_of_pillow(name):
    size, pixels = natively(NATIVE[name])
    wanted = np.asarray(Image.open(io.BytesIO(NATIVE[name])).convert("RGB"))
    assert tuple(size) == (43, 61)
    np.testing.assert_array_equal(pixels, wanted)
    np.testing.assert_array_equal(decode.pillow_pixels(NATIVE[name], 3, LIMIT, False), wanted)


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_left_to_pillow(name):
    with pytest.raises(tf.errors.InvalidArgumentError):
        natively(OTHERS[name])
    found = decode.pillow_pixels(OTHERS[name], 3, LIMIT, False)
    wanted = np.asarray(Image.open(io.BytesIO(OTHERS[name])).convert("RGB"))
    np.testing.assert_array_equal(found, wanted)
    assert found.shape == (43, 61, 3)


def test_cmyk_becomes_rgb():
    encoded = saved(SMOOTH.convert("CMYK"), "jpeg", quality=95)
    _, pixels = natively(encoded)
    assert abs(pixels - np.asarray(SMOOTH).astype(float)).mean() < 3


@pytest.mark.parametrize(
    ("name", "channels"),
    [("jpeg", 1), ("jpeg", 4), ("alpha png", 1), ("alpha png", 4), ("lossless webp", 1)],
)
def test_other_numbers_of_channels(name, channels):
    _, pixels = natively(NATIVE[name], channels)
    wanted = decode.pillow_pixels(NATIVE[name], channels, LIMIT, False)
    assert pixels.shape == wanted.shape == (43, 61, channels)
    assert abs(pixels.astype(float) - wanted).max() <= 2


@pytest.mark.parametrize("name", ["jpeg", "png", "lossy webp", "lossless webp", "extended webp"])
def test_pixel_limit_is_read_off_the_header(name):
    assert tuple(decode.native_size(NATIVE[name], 43 * 61).numpy()) == (43, 61)
    with pytest.raises(tf.errors.InvalidArgumentError, match="2623"):
        decode.native_size(NATIVE[name], 43 * 61 - 1)
    with pytest.raises(ValueError, match="61 x 43 pixels, more than"):
        decode.pillow_pixels(NATIVE[name], 3, 43 * 61 - 1, False)


@pytest.mark.parametrize(
    "damage", [b"", b"\xff\xd8", b"RIFF", b"\x89PNG\r\n\x1a\n", b"<html>", b"\0"]
)
def test_what_is_no_image_is_refused(damage):
    with pytest.raises((tf.errors.OpError, UnicodeDecodeError)):
        natively(damage)
    with pytest.raises(ValueError, match="cannot identify the format as one of"):
        decode.pillow_pixels(damage, 3, LIMIT, False)


@pytest.mark.parametrize("name", ["jpeg", "png"])
def test_cut_off_files_are_refused(name):
    with pytest.raises(tf.errors.OpError):
        natively(NATIVE[name][:-200])
    with pytest.raises(OSError, match=r"truncated|broken"):
        decode.pillow_pixels(NATIVE[name][:-200], 3, LIMIT, False)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_exif_orientation(kind, value):
    exif = Image.Exif()
    exif[decode.ORIENTATION] = value
    encoded = saved(SMOOTH, kind, exif=exif)
    assert decode.orientation(encoded) == value
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB"))
    pixels = decode.orient(decode.native_pixels(encoded, 3), tf.constant(value)).numpy()
    np.testing.assert_array_equal(pixels, upright)
    np.testing.assert_array_equal(decode.pillow_pixels(encoded, 3, LIMIT, True), upright)


@pytest.mark.parametrize("exif", [False, True])
def test_tiff_is_always_turned_upright(exif):
    tags = Image.Exif()
    tags[decode.ORIENTATION] = 6
    pixels = decode.pillow_pixels(saved(SMOOTH, "tiff", exif=tags), 3, LIMIT, exif)
    np.testing.assert_array_equal(pixels, np.rot90(np.asarray(SMOOTH), -1))


def test_orientation_of_what_has_none():
    assert decode.orientation(NATIVE["png"]) == decode.orientation(b"no image") == 1


@pytest.mark.parametrize("ratio", decode.REDUCTIONS)
def test_jpeg_is_decoded_smaller(ratio):
    encoded = NATIVE["jpeg"]
    _, pixels = natively(encoded, ratio=ratio)
    height, width = -(-43 // ratio), -(-61 // ratio)
    assert pixels.shape == (height, width, 3)
    padding = (0, height * ratio - 43), (0, width * ratio - 61), (0, 0)
    blocks = np.pad(np.asarray(SMOOTH).astype(float), padding, mode="edge")
    wanted = blocks.reshape(height, ratio, width, ratio, 3).mean((1, 3))
    assert abs(pixels - wanted).mean() < 2
    assert int(decode.reduction(encoded, ratio)) == ratio
    assert int(decode.reduction(encoded, ratio + (ratio > 1))) == ratio
    assert int(decode.reduction(encoded, 0)) == 1
    assert int(decode.reduction(NATIVE["png"], ratio)) == 1


@pytest.mark.parametrize("name", ["jpeg", "png", "lossy webp"])
def test_window_is_a_part_of_the_image(name):
    _, whole = natively(NATIVE[name])
    _, part = natively(NATIVE[name], window=tf.constant([5, 9, 20, 30]))
    assert part.shape == (20, 30, 3)
    # Where colour is stored at half resolution, it is interpolated differently at the border.
    np.testing.assert_array_equal(part[:, 2:-2], whole[5:25, 11:37])
    assert abs(part - whole[5:25, 9:39].astype(float)).max() < 40
