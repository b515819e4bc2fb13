"""Images of more than 8 bits a channel: scaled by one rule, or refused with a reason."""

import io

import numpy as np
import pytest
from PIL import Image

from can_jax.config.resolve import as_range
from can_jax.data.decoding import decode
from can_jax.data.index.examine import why_undecodable
from can_jax.data.sources.registry import open_source
from can_jax.utils.errors import UserError
from can_jax.utils.tensorflow import tensorflow
from tests.data.test_loader import batches
from tests.helpers.configs import small_config

tf = tensorflow()
LIMIT = 10**6
RAMP = np.linspace(0, 1, 24 * 32).reshape(24, 32)
BYTES = np.rint(255 * RAMP)


def saved(values, kind):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


def png16(values):
    """A PNG of 16 bits with any number of channels, which Pillow cannot write."""
    return tf.io.encode_png(tf.constant(values, tf.uint16)).numpy()


def tiff16(values):
    """An uncompressed TIFF of 16 bits in color, which Pillow cannot write either."""
    height, width, channels = values.shape
    data = values.astype("<u2").tobytes()
    after = 8 + 2 + 9 * 12 + 4
    tags = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, after), (259, 3, 1, 1),
        (262, 3, 1, 2), (273, 4, 1, after + 2 * channels), (277, 3, 1, channels),
        (278, 3, 1, height), (279, 4, 1, len(data)),
    ]  # fmt: skip
    entries = b"".join(
        np.array([tag, kind], "<u2").tobytes() + np.array([count, value], "<u4").tobytes()
        for tag, kind, count, value in tags
    )
    header = b"II*\0\x08\0\0\0" + np.array([len(tags)], "<u2").tobytes()
    bits = np.full(channels, 16, "<u2").tobytes()
    return header + entries + bytes(4) + bits + data


def pixels(encoded, value_range=None, channels=3):
    """As training reads an image: natively, or else by Pillow."""
    value_range = as_range(value_range)
    try:
        decode.native_size(encoded, LIMIT)
        return decode.native_pixels(encoded, channels, value_range=value_range).numpy()
    except tf.errors.OpError:
        return decode.pillow_pixels(encoded, channels, LIMIT, False, value_range)


def color(values):
    return np.stack([values, values[::-1], values[:, ::-1]], axis=-1)


def sixteen(top):
    return np.rint(top * RAMP).astype(np.uint16)


DARK = {  # what was nearly black, or wrapped around, and the range that it has
    "float tiff": (saved(RAMP.astype(np.float32), "tiff"), (0, 1)),
    "float tiff of 0..255": (saved(BYTES.astype(np.float32), "tiff"), (0, 255)),
    "12 bits in a tiff": (saved(sixteen(4095), "tiff"), (0, 4095)),
    "12 bits in a png": (saved(sixteen(4095), "png"), (0, 4095)),
    "14 bits in a png": (saved(sixteen(10_000), "png"), (0, 10_000)),
    "values of 8 bits in a tiff of 16": (saved(sixteen(255), "tiff"), (0, 255)),
    "12 bits in a color png": (png16(color(sixteen(4095))), (0, 4095)),
    "tomography": (saved((4000 * RAMP - 1000).astype(np.int32), "tiff"), (-1000, 3000)),
    "integers beyond 16 bits": (saved((1e6 * RAMP).astype(np.int32), "tiff"), (0, 1e6)),
}


@pytest.mark.parametrize("name", DARK)
def test_what_would_be_dark_is_refused_or_scaled_by_the_range(name):
    encoded, value_range = DARK[name]
    with pytest.raises(ValueError, match="set config.data.range"):
        pixels(encoded)
    assert "set config.data.range" in why_undecodable(encoded, LIMIT, whole=True)
    assert not why_undecodable(encoded, LIMIT, as_range(value_range), whole=True)
    found = pixels(encoded, value_range)
    expected = color(BYTES) if "color" in name else np.repeat(BYTES[..., None], 3, axis=-1)
    assert abs(found - expected).max() <= 1


FILLED = {
    "png": saved(sixteen(65535), "png"),
    "tiff": saved(sixteen(65535), "tiff"),
    "pgm of 12 bits": b"P5 32 24 4095\n" + sixteen(4095).astype(">u2").tobytes(),
}


@pytest.mark.parametrize("name", FILLED)
def test_files_that_fill_their_bits_are_scaled_alike(name):
    assert abs(pixels(FILLED[name])[..., 0] - BYTES).max() <= 1
    assert abs(pixels(FILLED[name], (0, 65535))[..., 0] - BYTES).max() <= 1


def test_sixteen_bits_in_color_keep_their_range_and_alpha():
    values = color(sixteen(65535))
    assert abs(pixels(png16(values)) - color(BYTES)).max() <= 1
    assert abs(pixels(tiff16(values)) - color(BYTES)).max() <= 1
    rgba = np.concatenate([values // 4, sixteen(65535)[..., None]], axis=-1)
    found = pixels(png16(rgba), (0, 65535 // 4), channels=4)
    assert abs(found[..., :3] - color(BYTES)).max() <= 2
    assert abs(found[..., 3] - BYTES).max() <= 1
    opaque = np.concatenate([values // 16, np.full_like(values[..., :1], 65535)], axis=-1)
    with pytest.raises(ValueError, match="16 bits"):  # alpha alone fills 16 bits
        pixels(png16(opaque), channels=4)


def test_color_tiffs_of_which_pillow_keeps_a_byte_are_refused_where_that_is_not_enough():
    with pytest.raises(ValueError, match="all its values are below 32768"):
        pixels(tiff16(color(sixteen(4095))))
    with pytest.raises(ValueError, match="is a color image: outside PNG files"):
        pixels(tiff16(color(sixteen(4095))), (0, 4095))
    dark = pixels(tiff16(color(sixteen(4095))), (0, 65535))
    assert abs(dark - color(BYTES) / 16).max() <= 1


def test_values_that_are_no_numbers_are_refused():
    broken = RAMP.astype(np.float32)
    broken[3, 5] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        pixels(saved(broken, "tiff"), (0, 1))


def test_eight_bits_are_left_alone_by_the_range():
    encoded = saved(BYTES.astype(np.uint8), "png")
    np.testing.assert_array_equal(pixels(encoded, (0, 4095))[..., 0], BYTES)


@pytest.mark.parametrize("value", [5, (1,), (4095, 0), (0, float("nan")), (0, "4095"), (1, 1)])
def test_a_range_is_two_ascending_numbers(value):
    with pytest.raises(UserError, match=r"config.data.range=.*\(low, high\)"):
        as_range(value)
    assert as_range([0, 4095]) == (0.0, 4095.0) and as_range(None) is None


def test_a_stream_counts_dark_images_and_says_why(tmp_path, caplog):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(DARK["12 bits in a png"][0])
        (tmp_path / f"{i}.jpg").write_bytes(saved(color(BYTES.astype(np.uint8)), "jpeg"))
    options = {"data__source": "folder", "data__path": str(tmp_path), "data__skip_limit": 1.0}
    _, loader = batches(small_config(**options), total=1)
    assert loader.skipped >= 4
    assert any("values from 0 to 4095" in record.getMessage() for record in caplog.records)


def array_parts(tmp_path, channels):
    shapes = {"a": (19, 16), "b": (16, 16)}
    rng, parts, arrays = np.random.default_rng(channels), [], []
    for name, sides in shapes.items():
        images = rng.integers(0, 256, (6, *sides, channels), dtype=np.uint8)
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "train.npz", images=images)
        parts.append({"source": "arrays", "path": str(tmp_path / name)})
        arrays += list(images)
    return tuple(parts), arrays


@pytest.mark.parametrize("channels", range(1, 9))
def test_arrays_of_any_channels_arrive_unchanged_in_a_mixture(tmp_path, channels):
    parts, arrays = array_parts(tmp_path, channels)
    plain = (0.5,) * channels
    config = small_config(
        data__source="mixture", data__mixture=parts, data__channels=channels,
        augment__mean=plain, augment__std=plain, augment__saturation=0.0, augment__hue=0.0,
    )  # fmt: skip
    encoded, _ = open_source(config.data, "train").read(np.arange(12))
    for content, image in zip(encoded, arrays, strict=True):
        np.testing.assert_array_equal(decode.native_size(content, LIMIT), image.shape[:2])
        np.testing.assert_array_equal(decode.native_pixels(content, channels), image)
        part = decode.native_pixels(content, channels, window=tf.constant([2, 3, 7, 9]))
        np.testing.assert_array_equal(part, image[2:9, 3:12])


def test_arrays_in_a_mixture_are_cropped_as_alone(tmp_path):
    (_, part), _ = array_parts(tmp_path, 4)
    same = {"data__channels": 4, "augment__mean": (0.5,) * 4, "augment__std": (0.5,) * 4}
    same |= {"augment__saturation": 0.0, "augment__hue": 0.0}
    alone, _ = batches(small_config(data__source="arrays", data__path=part["path"], **same))
    mixed, _ = batches(small_config(data__source="mixture", data__mixture=(part,), **same))
    for one, other in zip(alone, mixed, strict=True):
        np.testing.assert_array_equal(one.views, other.views)
