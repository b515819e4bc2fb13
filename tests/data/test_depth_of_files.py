"""Values that a file stores otherwise than Pillow's mode tells."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, features

from can_jax.config.resolve import as_range
from can_jax.data.decoding.decode import pillow_pixels
from can_jax.data.decoding.stored import stored_as
from can_jax.data.index.examine import why_undecodable

LIMIT = 10**6
RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)
BYTES = np.rint(255 * RAMP)


def tiff(values, *, photometric=1, sample_format=1):
    """A TIFF of one strip, for kinds that Pillow does not write."""
    height, width = values.shape[:2]
    bands = values.shape[2] if values.ndim == 3 else 1
    start = 8 + values.nbytes
    lists = start + 2 + 12 * 10 + 4
    tags = [(256, width), (257, height), (259, 1), (262, photometric), (273, 8), (277, bands)]
    tags += [(278, height), (279, values.nbytes)]
    entries = [(tag, 4, 1, value) for tag, value in tags]
    for number, (tag, value) in enumerate([(258, 8 * values.dtype.itemsize), (339, sample_format)]):
        entries.append((tag, 3, bands, value if bands == 1 else lists + 2 * bands * number))
    content = struct.pack("<2sHI", b"II", 42, start) + values.tobytes() + struct.pack("<H", 10)
    content += b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries)) + bytes(4)
    return content + struct.pack(
        f"<{2 * bands}H", *[8 * values.dtype.itemsize] * bands, *[sample_format] * bands
    )


def pixels(encoded, value_range=None, channels=3):
    return pillow_pixels(encoded, channels, LIMIT, False, as_range(value_range))


def sixteen(top):
    return np.rint(RAMP * top).astype(np.uint16)


@pytest.mark.parametrize(
    ("values", "sample_format", "value_range"),
    [
        ((RAMP * 4e9).astype(np.uint32), 1, (0, 4e9)),
        ((RAMP * 4000 - 2000).astype(np.int16), 2, (-2000, 2000)),
        ((RAMP * 200 - 100).astype(np.int8), 2, (-100, 100)),
    ],
)
def test_signs_are_read_as_stated(values, sample_format, value_range):
    encoded = tiff(values, sample_format=sample_format)
    with pytest.raises(ValueError, match=r"config.data.range"):
        pixels(encoded)
    assert abs(pixels(encoded, value_range)[..., 0] - BYTES).max() <= 2


def test_zero_as_white_is_inverted():
    decoded = pixels(tiff(65535 - sixteen(65535), photometric=0))
    assert abs(decoded[..., 0] - BYTES).max() <= 1


def test_many_bands_are_refused_with_a_reason():
    encoded = tiff(np.zeros((8, 8, 13), np.uint16))
    assert "many bands" in why_undecodable(encoded, LIMIT, whole=True)


@pytest.mark.parametrize("value_range", [None, (0, 1023)])
@pytest.mark.parametrize("maximum", [1023, 65535])
def test_netpbm_states_its_white(maximum, value_range):
    encoded = b"P5 32 32 %d\n" % maximum + sixteen(1023).astype(">u2").tobytes()
    if value_range or maximum == 1023:
        assert abs(pixels(encoded, value_range)[..., 0] - BYTES).max() <= 1
    else:
        with pytest.raises(ValueError, match="not the full range of 16 bits"):
            pixels(encoded)


def test_color_that_pillow_cuts_has_to_fill_its_bits():
    color = np.repeat(sixteen(4095)[..., None], 3, axis=-1).astype(">u2")
    with pytest.raises(ValueError, match="all its values are below 32768"):
        pixels(b"P6 32 32 65535\n" + color.tobytes())


def test_color_of_twelve_bits_takes_no_other_range():
    color = np.repeat(sixteen(4095)[..., None], 3, axis=-1).astype(">u2")
    encoded = b"P6 32 32 4095\n" + color.tobytes()
    for value_range in (None, (0, 4095), (0, 65535)):
        assert abs(pixels(encoded, value_range)[..., 0] - BYTES).max() <= 1
    with pytest.raises(ValueError, match=r"\(0, 4095\), not \(0.0, 1000.0\)"):
        pixels(encoded, (0, 1000))


@pytest.mark.skipif(not features.check("avif"), reason="Pillow is built without AVIF")
@pytest.mark.parametrize(("flags", "bits"), [(0, 8), (64, 10), (96, 12)])
def test_avif_states_its_bits(flags, bits):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "avif")
    encoded = bytearray(buffer.getvalue())
    encoded[encoded.index(b"av1C") + 6] |= flags
    with Image.open(buffer) as image:
        stored = stored_as(image, bytes(encoded))
    assert (stored.bits, stored.maximum, stored.deep) == (bits, 2**bits - 1, False)


@pytest.mark.parametrize("maximum", [15, 255])
@pytest.mark.parametrize("bands", [1, 3])
def test_dark_netpbm_of_eight_bits_is_good(maximum, bands):
    encoded = b"P%d 4 4 %d\n" % (6 if bands == 3 else 5, maximum) + bytes([3]) * 16 * bands
    assert (pixels(encoded) == round(3 * 255 / maximum)).all()


@pytest.mark.parametrize("top", [65535, 4095])
def test_jpeg_2000_of_sixteen_bits(top):
    buffer = io.BytesIO()
    Image.fromarray(sixteen(top)).save(buffer, "jpeg2000")
    if top == 65535:
        assert abs(pixels(buffer.getvalue())[..., 0] - BYTES).max() <= 1
    else:
        with pytest.raises(ValueError, match="not the full range of 16 bits"):
            pixels(buffer.getvalue())
        assert abs(pixels(buffer.getvalue(), (0, top))[..., 0] - BYTES).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_lab_is_converted_by_way_of_color(channels):
    from PIL import ImageCms

    image = Image.fromarray(np.stack([BYTES, BYTES.T, 255 - BYTES], axis=-1).astype(np.uint8))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab, buffer = ImageCms.profileToProfile(image, *profiles, outputMode="LAB"), io.BytesIO()
    lab.save(buffer, "tiff")
    wanted = np.asarray(image if channels == 3 else image.convert("L")).reshape(32, 32, channels)
    assert abs(pixels(buffer.getvalue(), channels=channels) - wanted.astype(float)).mean() < 4
