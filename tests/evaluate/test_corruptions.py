"""Each corruption against its published definition, at all severities."""

import numpy as np
import pytest
from PIL import Image

from can_jax.evaluate.protocols import corruptions as c
from can_jax.evaluate.protocols.corruptions import CORRUPTIONS, corrupt
from tests.evaluate import published_corruptions as published
from tests.evaluate.published_corruptions import CIFAR_10_C, FUNCTIONS, IMAGENET_C

SEVERITIES = (1, 2, 3, 4, 5)
TABLES = {32: CIFAR_10_C, 65: IMAGENET_C}  # by the side of an image
EPSILON = 1e-5  # of a byte, for the order of sums


def photo(size):
    """Bytes of a smooth image, the brightest of them below 255."""
    coarse = np.random.default_rng(0).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    return (0.9 * np.asarray(image)).astype(np.uint8)


def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize(("place", "table"), [(1, CIFAR_10_C), (2, IMAGENET_C)])
def test_constants_are_the_published_ones(place, table):
    assert set(CORRUPTIONS) == set(table) and len(table) == 15
    for name, constants in table.items():
        np.testing.assert_allclose(CORRUPTIONS[name][place], constants, err_msg=name)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("size", TABLES)
def test_image_is_that_of_the_published_function(name, size):
    image = photo(size)
    # Flakes, which are added twice, are rounded to bytes; the authors cut their fractions.
    more = 2 if name == "snow" else 0
    for severity in SEVERITIES:
        found = corrupt(image, name, severity, rng())
        constants = TABLES[size][name][severity - 1]
        wanted = 255 * np.clip(FUNCTIONS[name](image / 255, constants, rng()), 0, 1)
        cut = wanted - found
        assert found.dtype == np.uint8 and found.shape == image.shape
        assert -EPSILON - more <= cut.min() and cut.max() < 1 + EPSILON + more, severity


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", TABLES)
def test_frost_is_a_weighted_sum_with_one_picture(size, severity):
    image, black = photo(size), np.zeros((size, size, 3), np.uint8)
    mine, frosts = TABLES[size]["frost"][severity - 1]
    picture = corrupt(black, "frost", severity, rng()) / (255 * frosts)
    first = corrupt(black, "frost", 1, rng()) / (255 * TABLES[size]["frost"][0][1])
    np.testing.assert_allclose(picture, first, atol=1 / (255 * 0.2))
    assert picture.std() > 0.05 and 0.6 < picture.max() <= 1
    wanted = np.clip(255 * (mine * image / 255 + frosts * picture), 0, 255)
    found = corrupt(image, "frost", severity, rng())
    np.testing.assert_allclose(found, wanted, atol=1.01)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", TABLES)
def test_noise_has_its_statistics(size, severity):
    """Whatever the order of draws."""
    grey, table = np.full((200, 200, 3), 0.5), TABLES[size]
    place = 1 if table is CIFAR_10_C else 2

    def noisy(name):
        function, constants = CORRUPTIONS[name][0], CORRUPTIONS[name][place][severity - 1]
        return function(grey, constants, rng()), table[name][severity - 1]

    found, sigma = noisy("gaussian_noise")
    assert abs(found.mean() - 0.5) < 5 * sigma / 300
    assert found.std() == pytest.approx(sigma, rel=0.02)

    shot, photons = noisy("shot_noise")
    assert shot.mean() == pytest.approx(0.5, rel=0.02)
    assert shot.var() == pytest.approx(0.5 / photons, rel=0.03)
    np.testing.assert_allclose(shot * photons, np.round(shot * photons), atol=1e-9)

    impulses, share = noisy("impulse_noise")
    assert set(np.unique(impulses)) == {0.0, 0.5, 1.0}
    assert np.mean(impulses == 0) == pytest.approx(share / 2, rel=0.12)
    assert np.mean(impulses == 1) == pytest.approx(share / 2, rel=0.12)


@pytest.mark.parametrize("angle", [0, 45, -45, 90])
def test_motion_is_half_a_gaussian_along_a_line(angle):
    dot = np.zeros((61, 61))
    dot[30, 30] = 1
    found = c.along_line(dot, 10, 3, angle)
    weights = np.exp(-(np.arange(21) ** 2) / 18)
    weights /= weights.sum()
    turn = np.deg2rad(angle)
    wanted = np.zeros_like(dot)
    for i, weight in enumerate(weights):
        wanted[
            30 - int(np.ceil(i * np.sin(turn) - 0.5)), 30 - int(np.ceil(i * np.cos(turn) - 0.5))
        ] += weight
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(("side", "plane"), [(32, 32), (64, 64), (65, 256), (224, 256), (300, 512)])
@pytest.mark.parametrize("decay", [3, 1.4])
def test_fog_is_cut_from_a_plane_of_the_published_size(side, plane, decay):
    whole = published.plasma(plane, decay, rng())
    np.testing.assert_allclose(c.fractal(side, side, decay, rng()), whole[:side, :side], atol=1e-9)


@pytest.mark.parametrize(("side", "table"), [(64, CIFAR_10_C), (65, IMAGENET_C)])
def test_constants_are_chosen_by_the_shorter_side(side, table):
    image = photo(80)[:side]
    found = corrupt(image, "contrast", 1, rng())
    wanted = 255 * published.contrast(image / 255, table["contrast"][0], rng())
    np.testing.assert_allclose(found, wanted - 0.5, atol=0.5 + EPSILON)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_image_depends_on_the_generator_alone(name):
    image = photo(80)
    found, again = (corrupt(image, name, 3, rng()) for _ in range(2))
    np.testing.assert_array_equal(found, again)
    assert (found != image).any()
