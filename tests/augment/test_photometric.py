"""Each operation against Pillow or its formula."""

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from can_jax.augment import photometric as ph

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
PLANES = jnp.asarray(IMAGE.transpose(2, 0, 1) / 255, jnp.float32)


adjust_hue, blur, solarize = map(jax.jit, (ph.adjust_hue, ph.blur, ph.solarize))
augment = jax.jit(ph.augment, static_argnums=2)


@functools.cache
def blended(parts):
    return jax.jit(lambda factor: ph.blend(PLANES, parts(factor)))


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
    found = as_bytes(blended(parts)(jnp.float32(factor)))
    np.testing.assert_allclose(found, expected, atol=2.0)  # Pillow rounds luma and result


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.07, 0.5])
def test_hue_is_that_of_hsv(shift):
    found = np.asarray(adjust_hue(PLANES, jnp.float32(shift)))
    for row, column in np.ndindex(12, 10):
        h, s, v = colorsys.rgb_to_hsv(*(IMAGE[row, column] / 255))
        expected = colorsys.hsv_to_rgb((h + shift) % 1, s, v)
        np.testing.assert_allclose(found[:, row, column], expected, atol=1e-4)


def test_hue_of_grey_is_grey():
    grey = jnp.full((3, 2, 2), 0.4)
    np.testing.assert_allclose(adjust_hue(grey, jnp.float32(0.3)), grey)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_the_mirrored_gaussian(sigma):
    place = np.arange(-9, 10)
    kernel = np.exp(-0.5 * (place / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(np.asarray(PLANES, float), ((0, 0), (9, 9), (9, 9)), mode="reflect")
    rows = sum(k * padded[:, i : i + 12] for i, k in enumerate(kernel))
    expected = sum(k * rows[:, :, i : i + 10] for i, k in enumerate(kernel))
    np.testing.assert_allclose(blur(PLANES, jnp.float32(sigma)), expected, atol=2e-3)


def test_blur_keeps_the_mean_level_of_a_flat_image():
    flat = jnp.full((3, 8, 8), 0.7)
    np.testing.assert_allclose(blur(flat, jnp.float32(1.3)), flat, atol=1e-6)


def test_solarize_is_pillows():
    expected = np.asarray(ImageOps.solarize(Image.fromarray(IMAGE), 128), float)
    np.testing.assert_allclose(as_bytes(solarize(PLANES)), expected, atol=0.01)


def rows(count, settings, seed=0):
    images = jnp.broadcast_to(jnp.asarray(IMAGE / 255, jnp.float32), (count, 12, 10, 3))
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(augment(images, keys, settings))


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        (ph.Photometric(flip=0.3), lambda x: np.allclose(x, IMAGE[:, ::-1] / 255, atol=1e-6)),
        (ph.Photometric(grayscale=0.3), lambda x: np.ptp(x, axis=-1).max() < 1e-6),
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


def test_jitter_draws_both_orders_of_brightness_and_contrast():
    """They are told apart by what is clipped at 1 of an image of three greys."""
    greys = jnp.array([0.1, 0.5, 0.9])
    images = jnp.broadcast_to(greys[None, None, :, None], (128, 2, 3, 3))
    keys = jax.random.split(jax.random.key(0), 128)
    settings = ph.Photometric(jitter=1.0, brightness=0.9, contrast=0.9)
    low, middle, high = np.asarray(augment(images, keys, settings))[:, 0, :, 0].T
    # Contrast leaves the steps between the greys equal unless brightness clipped the lightest.
    unequal = np.abs((high - middle) - (middle - low)) > 0.02
    assert ((low > 0) & (high < 1) & unequal).any()
    # Contrast that clips the lightest grey does not raise the darkest, which is 0.19 at most.
    assert ((high == 1) & (low > 0.2)).any()


def test_a_row_depends_on_its_key_alone():
    settings = ph.Photometric(flip=0.5, jitter=0.8, brightness=0.4, hue=0.1, blur=0.5)
    rng = np.random.default_rng(1)
    images, others = (jnp.asarray(rng.random((4, 12, 10, 3)), jnp.float32) for _ in range(2))
    keys, other_keys = (jax.random.split(jax.random.key(seed), 4) for seed in (5, 6))
    found = augment(images, keys, settings)
    alone = augment(others.at[2].set(images[2]), other_keys.at[2].set(keys[2]), settings)
    np.testing.assert_allclose(found[2], alone[2], atol=1e-6)
    assert np.abs(found[1] - alone[1]).max() > 0.01
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


def test_normalise_and_back():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    images = ph.to_float(jnp.asarray(IMAGE))
    normal = ph.normalize(images, mean, std)
    np.testing.assert_allclose(normal, (IMAGE / 255 - mean) / std, atol=1e-5)
    np.testing.assert_allclose(ph.denormalize(normal, mean, std), images, atol=1e-6)
