"""Each operation against Pillow or its formula."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from can_jax.augment import photometric as ph

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
PLANES = jnp.asarray(IMAGE.transpose(2, 0, 1) / 255, jnp.float32)


def as_bytes(planes):
    return np.asarray(planes).transpose(1, 2, 0) * 255


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
@pytest.mark.parametrize(
    ("parts", "enhancer"),
    [
        (ph.brightness_parts, ImageEnhance.Brightness),
        (ph.contrast_parts, ImageEnhance.Contrast),
        (ph.saturation_parts, ImageEnhance.Color),
    ],
)
def test_blends_are_pillows(parts, enhancer, factor):
    expected = np.asarray(enhancer(Image.fromarray(IMAGE)).enhance(factor), float)
    found = as_bytes(ph.blend(PLANES, parts(jnp.float32(factor))))
    np.testing.assert_allclose(found, expected, atol=2.0)  # Pillow rounds luma and result


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.07, 0.5])
def test_hue_is_that_of_hsv(shift):
    found = np.asarray(ph.adjust_hue(PLANES, jnp.float32(shift)))
    for row, column in np.ndindex(12, 10):
        h, s, v = colorsys.rgb_to_hsv(*(IMAGE[row, column] / 255))
        expected = colorsys.hsv_to_rgb((h + shift) % 1, s, v)
        np.testing.assert_allclose(found[:, row, column], expected, atol=1e-4)


def test_hue_of_grey_is_grey():
    grey = jnp.full((3, 2, 2), 0.4)
    np.testing.assert_allclose(ph.adjust_hue(grey, jnp.float32(0.3)), grey)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_the_mirrored_gaussian(sigma):
    place = np.arange(-9, 10)
    kernel = np.exp(-0.5 * (place / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(np.asarray(PLANES, float), ((0, 0), (9, 9), (9, 9)), mode="reflect")
    rows = sum(k * padded[:, i : i + 12] for i, k in enumerate(kernel))
    expected = sum(k * rows[:, :, i : i + 10] for i, k in enumerate(kernel))
    np.testing.assert_allclose(ph.blur(PLANES, jnp.float32(sigma)), expected, atol=2e-3)


def test_blur_keeps_the_mean_level_of_a_flat_image():
    flat = jnp.full((3, 8, 8), 0.7)
    np.testing.assert_allclose(ph.blur(flat, jnp.float32(1.3)), flat, atol=1e-6)


def test_solarize_is_pillows():
    expected = np.asarray(ImageOps.solarize(Image.fromarray(IMAGE), 128), float)
    np.testing.assert_allclose(as_bytes(ph.solarize(PLANES)), expected, atol=0.01)


def rows(count, settings, seed=0):
    images = jnp.broadcast_to(jnp.asarray(IMAGE / 255, jnp.float32), (count, 12, 10, 3))
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(ph.augment(images, keys, settings))


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        (ph.Photometric(flip=0.3), lambda x: np.allclose(x, IMAGE[:, ::-1] / 255, atol=1e-6)),
        (ph.Photometric(greyscale=0.3), lambda x: np.ptp(x, axis=-1).max() < 1e-6),
        (
            ph.Photometric(blur=0.3, blur_sigma=(1.0, 2.0)),
            lambda x: x.std() < 0.9 * IMAGE.std() / 255,
        ),
        (ph.Photometric(solarize=0.3), lambda x: x.max() < 0.51),
        (ph.Photometric(jitter=0.3, brightness=0.4), lambda x: not np.allclose(x, IMAGE / 255)),
    ],
)
def test_operations_come_with_their_probability(settings, changed):
    share = np.mean([changed(x) for x in rows(400, settings)])
    assert share == pytest.approx(0.3, abs=0.08)


def test_jitter_draws_every_order():
    # Two operations that do not commute, told apart by their result.
    settings = ph.Photometric(jitter=1.0, contrast=0.9, hue=0.25, brightness=0.9)
    drawn = rows(64, settings)
    assert len(np.unique(drawn.reshape(64, -1).round(4), axis=0)) == 64
    assert 0 <= drawn.min() <= drawn.max() <= 1


def test_a_row_depends_on_its_key_alone():
    settings = ph.Photometric(flip=0.5, jitter=0.8, brightness=0.4, hue=0.1, blur=0.5)
    images = jnp.asarray(np.random.default_rng(1).random((4, 12, 10, 3)), jnp.float32)
    keys = jax.random.split(jax.random.key(5), 4)
    together = ph.augment(images, keys, settings)
    np.testing.assert_allclose(
        together[2:3], ph.augment(images[2:3], keys[2:3], settings), atol=1e-6
    )


def test_normalise_and_back():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    images = ph.to_float(jnp.asarray(IMAGE))
    normal = ph.normalize(images, mean, std)
    np.testing.assert_allclose(normal, (IMAGE / 255 - mean) / std, atol=1e-5)
    np.testing.assert_allclose(ph.denormalize(normal, mean, std), images, atol=1e-6)
