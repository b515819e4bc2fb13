"""Each corruption against its published definition, written down once more, at all severities."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, signal

from can_jax.evaluate.protocols import corruptions as c
from can_jax.evaluate.protocols.corruptions import CORRUPTIONS, corrupt

SEVERITIES = range(5)
TABLES = (1, 2)  # constants of small images, and of large ones


def photo(size=48, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image) / 255


def cases(name):
    return [CORRUPTIONS[name][table][severity] for table in TABLES for severity in SEVERITIES]


def rng():
    return np.random.default_rng(7)


def test_the_fifteen():
    assert len(CORRUPTIONS) == 15
    assert all(len(CORRUPTIONS[name][table]) == 5 for name in CORRUPTIONS for table in TABLES)


@pytest.mark.parametrize("k", range(10))
def test_noise_has_its_statistics(k):
    grey = np.full((200, 200, 3), 0.5)
    sigma = cases("gaussian_noise")[k]
    noise = c.gaussian_noise(grey, sigma, rng()) - grey
    assert abs(noise.mean()) < 5 * sigma / 300 and noise.std() == pytest.approx(sigma, rel=0.02)

    photons = cases("shot_noise")[k]
    shot = c.shot_noise(grey, photons, rng())
    assert shot.mean() == pytest.approx(0.5, rel=0.02)
    assert shot.var() == pytest.approx(0.5 / photons, rel=0.03)
    np.testing.assert_allclose(shot * photons, np.round(shot * photons), atol=1e-9)

    share = cases("impulse_noise")[k]
    impulses = c.impulse_noise(grey, share, rng())
    assert set(np.unique(impulses)) == {0.0, 0.5, 1.0}
    assert np.mean(impulses == 0) == pytest.approx(share / 2, rel=0.12)
    assert np.mean(impulses == 1) == pytest.approx(share / 2, rel=0.12)


@pytest.mark.parametrize("constants", cases("defocus_blur"))
def test_defocus_is_a_convolution_with_a_soft_disk(constants):
    radius, soft = constants
    reach = 8 if radius <= 8 else int(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = (x**2 + y**2 <= radius**2) * 1.0
    kernel /= kernel.sum()
    side = 1 if radius <= 8 else 2
    one = np.exp(-0.5 * (np.arange(-side, side + 1) / soft) ** 2)
    one /= one.sum()
    padded = np.pad(kernel, side, mode="reflect")
    kernel = signal.convolve2d(padded, np.outer(one, one), mode="valid")
    image = photo()
    wide = np.pad(image, [(reach, reach)] * 2 + [(0, 0)], mode="reflect")
    wanted = np.stack([signal.convolve2d(wide[..., i], kernel, "valid") for i in range(3)], -1)
    np.testing.assert_allclose(c.defocus_blur(image, constants, rng()), wanted, atol=1e-9)


@pytest.mark.parametrize("constants", cases("glass_blur"))
def test_glass_moves_pixels_no_further_than_its_reach(constants):
    sigma, reach, rounds = constants
    # A smooth image whose value tells the place: what is blurred and moved cannot differ by more.
    ramp = np.tile(np.linspace(0.2, 0.8, 48)[:, None, None], (1, 48, 3))
    found = c.glass_blur(ramp, constants, rng())
    step = 0.6 / 47
    margin = 8 * max(sigma, 0.5) + rounds * reach + 1
    inner = slice(int(margin), -int(margin))
    if len(ramp[inner]) > 2:
        assert np.abs(found - ramp)[inner].max() <= step * (reach * rounds + 1) + 1 / 255
    assert np.abs(found - c.blurred(ramp, sigma)).max() > 0.25 * step


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


@pytest.mark.parametrize("constants", cases("motion_blur"))
def test_motion_blur_keeps_a_flat_image_and_blurs_any_other(constants):
    flat = np.full((20, 20, 3), 0.3)
    np.testing.assert_allclose(c.motion_blur(flat, constants, rng()), flat, atol=1e-6)
    image = photo()
    assert (
        np.diff(c.motion_blur(image, constants, rng()), axis=1).std() < np.diff(image, axis=1).std()
    )


@pytest.mark.parametrize("constants", cases("zoom_blur"))
def test_zoom_blur_is_a_mean_of_zooms(constants):
    image = photo()
    zooms = [c.zoomed(image, z) for z in np.arange(1, *constants)]
    wanted = (image + np.sum(zooms, axis=0)) / (len(zooms) + 1)
    np.testing.assert_allclose(c.zoom_blur(image, constants, rng()), wanted, atol=1e-12)
    for zoom in zooms:
        assert zoom.shape == image.shape
        np.testing.assert_allclose(zoom[23:25, 23:25], image[23:25, 23:25], atol=0.2)


def test_zooms_reach_as_far_as_published():
    largest = [np.arange(1, *constants)[-1] for constants in CORRUPTIONS["zoom_blur"][2]]
    np.testing.assert_allclose(largest, [1.11, 1.15, 1.20, 1.24, 1.30], atol=0.0101)


@pytest.mark.parametrize("constants", cases("snow"))
def test_snow_whitens_and_adds_flakes_twice(constants):
    keep = constants[6]
    image = photo()
    found = c.snow(image, constants, rng())
    grey = 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
    white = keep * image + (1 - keep) * np.maximum(image, (1.5 * grey + 0.5)[..., None])
    flakes = found - white
    assert flakes.min() > -1e-9
    np.testing.assert_allclose(flakes, np.rot90(flakes, 2), atol=1e-9)
    np.testing.assert_allclose(flakes[..., 0], flakes[..., 2], atol=1e-9)


@pytest.mark.parametrize("k", range(10))
def test_frost_and_fog_are_weighted_sums(k):
    image, (mine, frosts) = photo(), cases("frost")[k]
    picture = c.frost_picture(48, 48, rng())
    assert picture.min() >= 0 and picture.max() <= 1 and picture.std() > 0.05
    found = c.frost(image, (mine, frosts), rng())
    np.testing.assert_allclose(found, mine * image + frosts * picture, atol=1e-12)

    thick, decay = cases("fog")[k]
    plasma = c.fractal(48, 48, decay, rng())[..., None]
    wanted = (image + thick * plasma) * image.max() / (image.max() + thick)
    np.testing.assert_allclose(c.fog(image, (thick, decay), rng()), wanted, atol=1e-12)


def plasma(size, wibbledecay, rng):
    """The published plasma fractal, one point after the other: a new point is the mean of four
    neighbors plus ``wibble`` times a uniform draw from (-wibble, wibble)."""
    height = {(0, 0): 0.0}
    step, wibble = size, 100.0
    while step > 1:
        half = step // 2

        def add(points, offsets, reach=half, wibble=wibble):
            drawn = rng.uniform(-wibble, wibble, len(points)).tolist()
            for (y, x), jitter in zip(points, drawn, strict=True):
                near = [height[(y + reach * a) % size, (x + reach * b) % size] for a, b in offsets]
                height[y, x] = sum(near) / 4 + wibble * jitter

        grid = [(y, x) for y in range(0, size, step) for x in range(0, size, step)]
        add([(y + half, x + half) for y, x in grid], [(-1, -1), (-1, 1), (1, -1), (1, 1)])
        edges = [(y, x + half) for y, x in grid] + [(y + half, x) for y, x in grid]
        add(edges, [(-1, 0), (1, 0), (0, -1), (0, 1)])
        step, wibble = half, wibble / wibbledecay
    plane = np.array([[height[y, x] for x in range(size)] for y in range(size)])
    return (plane - plane.min()) / (plane.max() - plane.min())


def power_by_octave(planes):
    """log10 of the mean power at wave numbers 1, 2-3, 4-7, …, relative to the first."""
    size = len(planes[0])
    power = np.mean([np.abs(np.fft.fft2(plane - plane.mean())) ** 2 for plane in planes], axis=0)
    wave = np.fft.fftfreq(size, 1 / size)
    octave = np.floor(np.log2(np.maximum(np.hypot(wave[:, None], wave), 0.5))).astype(int)
    found = [np.log10(power[octave == i].mean()) for i in range(int(np.log2(size)))]
    return np.array(found) - found[0]


def gradient(planes):
    return np.mean([np.abs(np.diff(plane, axis=i)).mean() for plane in planes for i in (0, 1)])


@pytest.mark.parametrize(
    ("size", "decay"), [(32, 3), (32, 2.5), (32, 2), (32, 1.75), (256, 2), (256, 1.4)]
)
def test_fog_has_the_spectrum_and_gradients_of_the_published_fractal(size, decay):
    # Both get the same random numbers, so that few planes suffice.
    seeds = range(2 if size == 256 else 8)
    wanted = [plasma(size, decay, np.random.default_rng(seed)) for seed in seeds]
    found = [c.fractal(size, size, decay, np.random.default_rng(seed)) for seed in seeds]
    np.testing.assert_allclose(power_by_octave(found), power_by_octave(wanted), atol=0.1)
    assert gradient(found) == pytest.approx(gradient(wanted), rel=0.05)


@pytest.mark.parametrize(("side", "plane"), [(32, 32), (64, 64), (65, 256), (224, 256), (300, 512)])
def test_fog_is_cut_from_a_plane_of_the_published_size(side, plane):
    whole = c.fractal(plane, plane, 2, rng())
    np.testing.assert_array_equal(c.fractal(side, side, 2, rng()), whole[:side, :side])
    if side == plane:
        assert whole.min() == 0 and whole.max() == 1


def test_constants_are_the_published_ones():
    """Of CIFAR-10-C and of ImageNet-C, in the order of severities."""
    published = {
        "gaussian_noise": ([0.04, 0.06, 0.08, 0.09, 0.1], [0.08, 0.12, 0.18, 0.26, 0.38]),
        "shot_noise": ([500, 250, 100, 75, 50], [60, 25, 12, 5, 3]),
        "impulse_noise": ([0.01, 0.02, 0.03, 0.05, 0.07], [0.03, 0.06, 0.09, 0.17, 0.27]),
        "defocus_blur": (
            [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
            [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
        ),
        "glass_blur": (
            [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
            [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
        ),
        "motion_blur": (
            [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
            [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
        ),
        "zoom_blur": (
            [(end, 0.01) for end in (1.06, 1.11, 1.16, 1.21, 1.26)],
            [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
        ),
        "fog": (
            [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
            [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
        ),
        "frost": (
            [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
            [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
        ),
        "brightness": ([0.05, 0.1, 0.15, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4, 0.5]),
        "contrast": ([0.75, 0.5, 0.4, 0.3, 0.15], [0.4, 0.3, 0.2, 0.1, 0.05]),
        "pixelate": ([0.95, 0.9, 0.85, 0.75, 0.65], [0.6, 0.5, 0.4, 0.3, 0.25]),
        "jpeg_compression": ([80, 65, 58, 50, 40], [25, 18, 15, 10, 7]),
        "snow": (
            [
                (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
                (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9), (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
                (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
            ],
            [
                (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
                (0.55, 0.3, 4, 0.9, 12, 8, 0.7), (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
                (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
            ],
        ),
        "elastic_transform": (
            [
                (0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6),
                (3.2, 0.96, 0.96),
            ],
            [
                (488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88),
                (29.28, 2.44, 4.88),
            ],
        ),
    }  # fmt: skip
    assert set(published) == set(CORRUPTIONS)
    for name, tables in published.items():
        for table, wanted in zip(TABLES, tables, strict=True):
            np.testing.assert_allclose(CORRUPTIONS[name][table], wanted, err_msg=name)


def test_fractal_fills_the_unit_interval_and_is_smoother_the_faster_it_decays():
    rough, smooth = (c.fractal(256, 256, decay, rng()) for decay in (1.4, 3.0))
    for plane in (rough, smooth):
        assert plane.min() == 0 and plane.max() == 1 and (plane > 0).mean() > 0.99
    assert np.abs(np.diff(rough)).mean() > 3 * np.abs(np.diff(smooth)).mean()
    # It lies on a torus: the seam is no rougher than the rest.
    seam = np.abs(smooth[:, 0] - smooth[:, -1]).mean()
    assert seam < 3 * np.abs(np.diff(smooth)).mean()


@pytest.mark.parametrize("k", range(10))
def test_brightness_and_contrast(k):
    import colorsys

    image, added = photo(), cases("brightness")[k]
    found = c.brightness(image, added, rng())
    for place in ((3, 5), (20, 11), (40, 47)):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[place])
        wanted = colorsys.hsv_to_rgb(hue, saturation, min(value + added, 1))
        np.testing.assert_allclose(found[place], wanted, atol=1e-9)
    factor = cases("contrast")[k]
    found = c.contrast(image, factor, rng())
    np.testing.assert_allclose(found.mean((0, 1)), image.mean((0, 1)))
    np.testing.assert_allclose(found.std((0, 1)), factor * image.std((0, 1)))


@pytest.mark.parametrize("constants", cases("elastic_transform"))
def test_elastic_stays_put_without_strength_and_moves_as_far_as_it_may(constants):
    image = photo()
    np.testing.assert_allclose(c.elastic_transform(image, (0, 0, 0), rng()), image, atol=1e-9)
    strength, smoothness, moved = constants
    found = c.elastic_transform(image, constants, rng())
    assert found.shape == image.shape and image.min() - 1e-9 <= found.min()
    assert found.max() <= image.max() + 1e-9 and np.abs(found - image).max() > 0.01
    drawn = rng()
    drawn.uniform(-moved, moved, (3, 2))
    field = drawn.uniform(-1, 1, (48, 48))
    if smoothness:
        field = ndimage.gaussian_filter(field, smoothness, mode="reflect", truncate=3)
    only = c.elastic_transform(image, (strength, smoothness, 0), rng())
    assert np.isfinite(only).all() and np.abs(strength * field).max() >= 0


@pytest.mark.parametrize("k", range(10))
def test_pixelate_and_jpeg_are_pillows(k):
    image, part = photo(), cases("pixelate")[k]
    bytes_ = np.round(255 * image).astype(np.uint8)
    small = Image.fromarray(bytes_).resize((int(48 * part),) * 2, Image.Resampling.BOX)
    wanted = np.asarray(small.resize((48, 48), Image.Resampling.BOX)) / 255
    np.testing.assert_array_equal(c.pixelate(image, part, rng()), wanted)
    quality, buffer = cases("jpeg_compression")[k], io.BytesIO()
    Image.fromarray(bytes_).save(buffer, "JPEG", quality=quality)
    wanted = np.asarray(Image.open(buffer)) / 255
    np.testing.assert_array_equal(c.jpeg_compression(image, quality, rng()), wanted)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [32, 80])
def test_every_severity_of_every_corruption_gives_bytes_the_same_ones_each_time(name, size):
    image = np.round(255 * photo(size)).astype(np.uint8)
    away = []
    for severity in (1, 2, 3, 4, 5):
        found = corrupt(image, name, severity, np.random.default_rng(severity))
        again = corrupt(image, name, severity, np.random.default_rng(severity))
        assert found.dtype == np.uint8 and found.shape == image.shape
        np.testing.assert_array_equal(found, again)
        away.append(np.abs(found.astype(float) - image).mean())
    # The constants of the elastic one are in pixels of a large image.
    assert max(away) > 0.5 and (away[-1] > 0.7 * away[0] or name == "elastic_transform")
