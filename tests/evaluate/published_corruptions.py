"""The fifteen corruptions as their authors define them, apart from the code under test.

Formulas and constants are those of arXiv 1903.12261 and of its authors' programs, which made
CIFAR-10-C and ImageNet-C. Where these call OpenCV, scikit-image or ImageMagick, kernels and borders
are written out. An image has values in [0, 1], and is square as all of theirs are.
"""

import colorsys
import io

import numpy as np
from PIL import Image

# The constants of severities 1 to 5.
CIFAR_10_C = {
    "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.1],
    "shot_noise": [500, 250, 100, 75, 50],
    "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],
    "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    "glass_blur": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
    "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "zoom_blur": [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)],
    "snow": [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9), (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
    "frost": [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],
    "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
    "elastic_transform": [
        (0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96),
    ],
    "pixelate": [0.95, 0.9, 0.85, 0.75, 0.65],
    "jpeg_compression": [80, 65, 58, 50, 40],
}  # fmt: skip
IMAGENET_C = {
    "gaussian_noise": [0.08, 0.12, 0.18, 0.26, 0.38],
    "shot_noise": [60, 25, 12, 5, 3],
    "impulse_noise": [0.03, 0.06, 0.09, 0.17, 0.27],
    "defocus_blur": [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    "glass_blur": [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    "motion_blur": [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    "zoom_blur": [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
    "snow": [
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7), (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ],
    "frost": [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    "fog": [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    "brightness": [0.1, 0.2, 0.3, 0.4, 0.5],
    "contrast": [0.4, 0.3, 0.2, 0.1, 0.05],
    "elastic_transform": [
        (488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    ],
    "pixelate": [0.6, 0.5, 0.4, 0.3, 0.25],
    "jpeg_compression": [25, 18, 15, 10, 7],
}  # fmt: skip


def padded(x, reach, border):
    """Pad the first two axes."""
    return np.pad(x, [(reach, reach)] * 2 + [(0, 0)] * (x.ndim - 2), mode=border)


def shifted(x, down, right):
    """Return the pixels that lie ``down`` and ``right`` of each; the border is repeated."""
    reach = max(abs(down), abs(right))
    height, width = x.shape[:2]
    wide = padded(x, reach, "edge")
    return wide[reach + down : reach + down + height, reach + right : reach + right + width]


def gaussian(x, sigma, truncate=4.0, border="edge"):
    """Blur as ``skimage.filters.gaussian`` does."""
    reach = int(truncate * sigma + 0.5)
    if not reach:
        return x
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        pad = [(reach, reach) if i == axis else (0, 0) for i in range(x.ndim)]
        wide = np.pad(x, pad, mode=border)
        x = np.apply_along_axis(np.convolve, axis, wide, weights, mode="valid")
    return x


def enlarged(x, factor, axis):
    """Resize one axis linearly, end point on end point, as ``scipy.ndimage.zoom`` does."""
    size = x.shape[axis]
    places = np.linspace(0, size - 1, round(size * factor))
    return np.apply_along_axis(lambda line: np.interp(places, np.arange(size), line), axis, x)


def zoomed(x, factor):
    """Enlarge the middle of an image to the size of the whole."""
    size = len(x)
    part = int(np.ceil(size / factor))
    top = (size - part) // 2
    large = enlarged(enlarged(x[top : top + part, top : top + part], factor, 0), factor, 1)
    top = (len(large) - size) // 2
    return large[top : top + size, top : top + size]


def moved_blur(x, radius, sigma, angle):
    """Blur by half a Gaussian along a line of whole pixels, as ImageMagick's motion blur does."""
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    turn, total = np.deg2rad(angle), np.zeros(x.shape)
    for step, weight in enumerate(weights / weights.sum()):
        down, right = (int(np.ceil(step * f(turn) - 0.5)) for f in (np.sin, np.cos))
        total += weight * shifted(x, down, right)
    return total


def sampled(x, rows, columns, border):
    """Return values between pixels, bilinearly."""
    reach = int(np.ceil(max(np.abs(rows).max(), np.abs(columns).max()))) + 1
    wide = padded(x, reach, border)
    low, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = (rows - low)[..., None], (columns - left)[..., None]
    low, left = low + reach, left + reach
    above = wide[low, left] * (1 - right) + wide[low, left + 1] * right
    below = wide[low + 1, left] * (1 - right) + wide[low + 1, left + 1] * right
    return above * (1 - down) + below * down


def plasma(size, wibbledecay, rng):
    """Return a plasma fractal: a new point is the mean of four neighbors plus ``wibble`` times a
    uniform draw from (-wibble, wibble)."""
    plane, step, wibble = np.zeros((size, size)), size, 100.0
    while step > 1:
        half = step // 2

        def add(rows, columns, offsets, reach=half, wibble=wibble):
            near = [plane[(rows + reach * a) % size, (columns + reach * b) % size]
                    for a, b in offsets]  # fmt: skip
            drawn = rng.uniform(-wibble, wibble, rows.shape)
            plane[rows, columns] = sum(near) / 4 + wibble * drawn

        rows, columns = np.mgrid[0:size:step, 0:size:step]
        add(rows + half, columns + half, [(-1, -1), (-1, 1), (1, -1), (1, 1)])
        for down, right in ((0, half), (half, 0)):
            add(rows + down, columns + right, [(-1, 0), (1, 0), (0, -1), (0, 1)])
        step, wibble = half, wibble / wibbledecay
    plane -= plane.min()
    return plane / plane.max()


def gaussian_noise(x, sigma, rng):
    return x + rng.normal(size=x.shape, scale=sigma)


def shot_noise(x, photons, rng):
    return rng.poisson(x * photons) / photons


def defocus_blur(x, constants, rng):
    radius, alias_blur = constants
    reach, side = (8, 1) if radius <= 8 else (radius, 2)
    y, x_ = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x_**2 + y**2 <= radius**2) * 1.0
    disk = padded(disk / disk.sum(), side, "reflect")
    soft = np.exp(-0.5 * (np.arange(-side, side + 1) / alias_blur) ** 2)
    soft /= soft.sum()
    size = 2 * reach + 1
    kernel = sum(
        a * b * disk[i : i + size, j : j + size]
        for i, a in enumerate(soft)
        for j, b in enumerate(soft)
    )
    wide = padded(x, reach, "reflect")
    return sum(
        kernel[i, j] * wide[i : i + len(x), j : j + len(x)]
        for i in range(size)
        for j in range(size)
    )


def glass_blur(x, constants, rng):
    sigma, reach, rounds = constants
    pixels = np.uint8(255 * gaussian(x, sigma))
    size = len(x)
    for _ in range(rounds):
        moves = rng.integers(-reach, reach, (size, size, 2))
        for row in range(size - reach, reach, -1):
            for column in range(size - reach, reach, -1):
                right, down = moves[row - 1, column - 1]
                near = row + down, column + right
                # As published: both sides are views, so that the second assignment changes nothing.
                pixels[row, column], pixels[near] = pixels[near], pixels[row, column]
    return gaussian(pixels / 255, sigma)


def motion_blur(x, constants, rng):
    return moved_blur(x, *constants, rng.uniform(-45, 45))


def zoom_blur(x, constants, rng):
    factors = np.arange(1, *constants)
    return (x + sum(zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


def snow(x, constants, rng):
    mean, deviation, zoom, threshold, radius, sigma, keep = constants
    flakes = zoomed(rng.normal(mean, deviation, x.shape[:2]), zoom)
    flakes = np.where(flakes < threshold, 0, flakes)
    flakes = np.uint8(255 * np.clip(flakes, 0, 1)) / 255
    flakes = moved_blur(flakes, radius, sigma, rng.uniform(-135, -45))[..., None]
    grey = 0.299 * x[..., :1] + 0.587 * x[..., 1:2] + 0.114 * x[..., 2:]
    x = keep * x + (1 - keep) * np.maximum(x, 1.5 * grey + 0.5)
    return x + flakes + flakes[::-1, ::-1]


def fog(x, constants, rng):
    thick, decay = constants
    plane = plasma(32 if len(x) <= 64 else 256, decay, rng)[: len(x), : len(x), None]
    return (x + thick * plane) * x.max() / (x.max() + thick)


def brightness(x, added, rng):
    def brighter(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb(hue, saturation, min(value + added, 1))

    return np.apply_along_axis(brighter, 2, x)


def contrast(x, factor, rng):
    means = np.array([x[..., i].mean() for i in range(3)])
    return factor * x + (1 - factor) * means


def elastic_transform(x, constants, rng):
    """The publication's horizontal axis is the first one here, which for square images is the same
    but for the order of draws."""
    strength, smoothness, moved = constants
    size = len(x)
    middle, third = size // 2, size // 3
    corners = middle + third * np.array([[1, 1], [1, -1], [-1, -1]])
    targets = corners + rng.uniform(-moved, moved, (3, 2))
    # The six numbers of the affine map from the corners to the targets, and its inverse.
    rows = [[*corner, 1] for corner in corners.tolist()]
    forth = np.array([np.linalg.solve(rows, targets[:, i]) for i in range(2)])
    back = np.linalg.inv(np.vstack([forth, [0, 0, 1]]))
    first, second = np.mgrid[0:size, 0:size].astype(float)
    at = [back[i, 0] * first + back[i, 1] * second + back[i, 2] for i in range(2)]
    x = sampled(x, *at, "reflect")
    fields = [
        strength * gaussian(rng.uniform(-1, 1, (size, size)), smoothness, 3.0, "symmetric")
        for _ in range(2)
    ]
    return sampled(x, first + fields[0], second + fields[1], "symmetric")


def image_of(x):
    return Image.fromarray(np.round(255 * x).astype(np.uint8))


def pixelate(x, part, rng):
    size = len(x)
    small = image_of(x).resize((int(size * part),) * 2, Image.Resampling.BOX)
    return np.asarray(small.resize((size, size), Image.Resampling.BOX)) / 255


def jpeg_compression(x, quality, rng):
    buffer = io.BytesIO()
    image_of(x).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)) / 255


# Without impulse noise, whose draws are scikit-image's, and frost, which is photographs.
FUNCTIONS = {
    function.__name__: function
    for function in (
        gaussian_noise, shot_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, fog,
        brightness, contrast, elastic_transform, pixelate, jpeg_compression,
    )
}  # fmt: skip
