"""The fifteen corruptions of ImageNet-C and CIFAR-10-C (arXiv 1903.12261), for images of any size.

Each corruption is a function of an image in [0, 1], the constants of one severity and a random
generator. The constants come from the authors' code: the CIFAR-10-C constants if the shorter side
has at most 64 px, the ImageNet-C constants otherwise. Frost is generated from a fractal, because
the authors' photographs of frost cannot be redistributed. Motion blur samples whole pixels along a
line, and extends the image by its border pixels, as ImageMagick does.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage

from can_jax.data.decoding.open_image import open_image

Number = int | float
Picture = Float[np.ndarray, "height width 3"]
DRAWN = "frost"  # The corruption that is generated from a fractal; the authors use photographs.
SMALL = 64  # The maximum shorter side in pixels for which the CIFAR-10-C constants are used.


def gaussian_noise(x: Picture, c: Number, rng: np.random.Generator) -> Picture:
    """Add Gaussian noise of standard deviation ``c``."""
    return x + rng.normal(scale=c, size=x.shape)


def shot_noise(x: Picture, c: Number, rng: np.random.Generator) -> Picture:
    """Apply Poisson noise, with an expected count of ``c`` photons for a white pixel."""
    return rng.poisson(x * c) / c


def impulse_noise(x: Picture, c: Number, rng: np.random.Generator) -> Picture:
    """Set each channel value with probability ``c`` to 0 or 1."""
    hit, white = rng.random(x.shape) < c, rng.random(x.shape) < 0.5
    return np.where(hit, white.astype(x.dtype), x)


def disk(radius: Number, alias_blur: Number) -> Float[np.ndarray, "size size"]:
    """Return a normalized disk kernel whose edge is softened by a Gaussian.

    Args:
        radius: The radius of the disk in pixels.
        alias_blur: The standard deviation of the Gaussian in pixels.
    """
    reach = max(8, int(radius))
    line = np.arange(-reach, reach + 1)
    kernel = (line[:, None] ** 2 + line**2 <= radius**2).astype(float)
    side = 1 if radius <= 8 else 2
    soft = np.exp(-(np.arange(-side, side + 1) ** 2) / (2 * alias_blur**2))
    soft /= soft.sum()
    kernel = ndimage.correlate(kernel / kernel.sum(), np.outer(soft, soft), mode="mirror")
    return kernel


def defocus_blur(x: Picture, c: tuple[Number, Number], rng: np.random.Generator) -> Picture:
    """Apply defocus blur; ``c`` holds the arguments of `disk`."""
    return ndimage.correlate(x, disk(*c)[..., None], mode="mirror")


def blurred(x: np.ndarray, sigma: Number, truncate: float = 4.0) -> np.ndarray:
    """Apply a Gaussian blur along height and width, but not across channels."""
    return ndimage.gaussian_filter(
        x, (sigma, sigma, 0)[: x.ndim], mode="nearest", truncate=truncate
    )


def glass_blur(x: Picture, c: tuple[Number, int, int], rng: np.random.Generator) -> Picture:
    """Replace pixels by random nearby pixels, between two Gaussian blurs.

    ``c`` holds the standard deviation of the blurs, the maximum displacement in pixels, and the
    number of rounds. The authors' code is meant to swap two pixels, but copies one onto the other,
    because its NumPy views share memory. This function copies the pixel as the authors' code does.
    """
    sigma, reach, rounds = c
    x = np.floor(255 * blurred(x, sigma)) / 255
    height, width = x.shape[:2]
    for _ in range(rounds):
        moves = rng.integers(-reach, reach, (height, width, 2))
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                right, down = moves[row - 1, column - 1]
                x[row, column] = x[row + down, column + right]
    return blurred(x, sigma)


def along_line(x: np.ndarray, radius: Number, sigma: Number, angle: Number) -> np.ndarray:
    """Blur by a one-sided Gaussian along a line, as ImageMagick's motion blur does.

    Args:
        x: The image, (height, width, …).
        radius: The radius of the blur in pixels. The line has ``2 ceil(radius) + 1`` pixels.
        sigma: The standard deviation of the Gaussian in pixels.
        angle: The angle of the line, in degrees from the x axis.
    """
    steps = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    turn = np.deg2rad(angle)
    right = np.ceil(steps * np.cos(turn) - 0.5).astype(int)
    down = np.ceil(steps * np.sin(turn) - 0.5).astype(int)
    rows, columns = np.arange(x.shape[0]), np.arange(x.shape[1])
    total = np.zeros(x.shape)
    for weight, dx, dy in zip(weights, right, down, strict=True):
        if weight < 1e-7:
            break
        at = (
            np.clip(rows + dy, 0, len(rows) - 1)[:, None],
            np.clip(columns + dx, 0, len(columns) - 1),
        )
        total += weight * x[at]
    return total


def motion_blur(x: Picture, c: tuple[Number, Number], rng: np.random.Generator) -> Picture:
    """Blur along a line at a random angle between -45 and 45 degrees.

    ``c`` holds the radius and the standard deviation in pixels.
    """
    return along_line(x, *c, rng.uniform(-45, 45))


def zoomed(x: np.ndarray, factor: Number) -> np.ndarray:
    """Return the center of an image, enlarged by ``factor`` to the size of the whole image."""
    height, width = x.shape[:2]
    rows, columns = int(np.ceil(height / factor)), int(np.ceil(width / factor))
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = x[top : top + rows, left : left + columns]
    large = ndimage.zoom(middle, (factor, factor, 1)[: x.ndim], order=1)
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return large[top : top + height, left : left + width]


def zoom_blur(x: Picture, c: tuple[Number, Number], rng: np.random.Generator) -> Picture:
    """Average an image with enlargements of its center.

    ``c`` holds the exclusive upper bound of the zoom factors, and the increment between them.
    """
    zooms = [zoomed(x, factor) for factor in np.arange(1, *c)]
    return (x + sum(zooms)) / (len(zooms) + 1)


def snow(x: Picture, c: tuple[Number, ...], rng: np.random.Generator) -> Picture:
    """Whiten an image, and add snowflakes with motion blur.

    The first four values of ``c`` are the mean, standard deviation, zoom and threshold of the
    flakes. The other values of ``c`` are the radius and standard deviation of the motion blur in
    pixels, and the weight of the original image.
    """
    mean, deviation, zoom, threshold, radius, sigma, keep = c
    flakes = zoomed(rng.normal(mean, deviation, x.shape[:2]), zoom)
    flakes[flakes < threshold] = 0
    flakes = np.round(255 * np.clip(flakes, 0, 1)) / 255
    flakes = along_line(flakes, radius, sigma, rng.uniform(-135, -45))[..., None]
    gray = x @ [0.299, 0.587, 0.114]
    x = keep * x + (1 - keep) * np.maximum(x, gray[..., None] * 1.5 + 0.5)
    return x + flakes + np.rot90(flakes, 2)


def frost_picture(height: int, width: int, rng: np.random.Generator) -> Picture:
    """Generate an image of window frost: bluish ridges of a fractal, denser in some regions."""
    ridges = np.zeros((height, width))
    for decay in (1.25, 1.4, 1.6):
        ridges += (1 - np.abs(2 * fractal(height, width, decay, rng) - 1)) ** 4
    thick = fractal(height, width, 1.7, rng)
    bright = np.clip(0.25 + 1.1 * thick * ridges / np.max(ridges), 0, 1)
    return bright[..., None] * np.array([0.86, 0.94, 1.0])


def frost(x: Picture, c: tuple[Number, Number], rng: np.random.Generator) -> Picture:
    """Overlay generated frost; ``c`` holds the weights of the image and of the frost."""
    return c[0] * x + c[1] * frost_picture(x.shape[0], x.shape[1], rng)


def fractal(
    height: int, width: int, decay: Number, rng: np.random.Generator
) -> Float[np.ndarray, "height width"]:
    """Return a plasma fractal in [0, 1], by the diamond-square algorithm with periodic borders.

    Each new point is the mean of its four neighbors plus uniform noise. The published code divides
    its ``wibble`` by ``decay`` at each finer grid, and adds ``wibble * uniform(-wibble, wibble)``.
    The noise amplitude is therefore divided by ``decay ** 2`` at each finer grid. The side of the
    grid is the smallest power of two that covers the image. The grid has at least 256 points per
    side, or at least 32 if the shorter side of the image has at most 64 px.

    Args:
        height, width: The size of the returned array in pixels; the upper left part of the grid is
            returned.
        decay: The factor by which ``wibble`` decreases from each grid to the next finer grid.
        rng: The random generator of the noise.
    """
    least = 32 if min(height, width) <= SMALL else 256
    size = max(least, 1 << (max(height, width) - 1).bit_length())
    plane, step, amplitude = np.zeros((size, size)), size, 1.0

    def jitter(total: np.ndarray) -> np.ndarray:
        return total / 4 + amplitude * rng.uniform(-1, 1, total.shape)

    while step >= 2:
        half = step // 2
        corners = plane[::step, ::step]
        two = corners + np.roll(corners, -1, 0)
        plane[half::step, half::step] = jitter(two + np.roll(two, -1, 1))
        centers = plane[half::step, half::step]
        across = corners + np.roll(corners, -1, 1)
        plane[::step, half::step] = jitter(centers + np.roll(centers, 1, 0) + across)
        along = corners + np.roll(corners, -1, 0)
        plane[half::step, ::step] = jitter(centers + np.roll(centers, 1, 1) + along)
        step, amplitude = half, amplitude / decay**2
    plane -= np.min(plane)
    return (plane / np.max(plane))[:height, :width]


def fog(x: Picture, c: tuple[Number, Number], rng: np.random.Generator) -> Picture:
    """Add fractal fog; ``c`` holds its thickness and the decay of the fractal."""
    brightest = x.max()
    thick = x + c[0] * fractal(x.shape[0], x.shape[1], c[1], rng)[..., None]
    return thick * brightest / (brightest + c[0])


def brightness(x: Picture, c: Number, rng: np.random.Generator) -> Picture:
    """Add ``c`` to the value channel of HSV. Hue and saturation are unchanged."""
    value = x.max(axis=2, keepdims=True)
    target = np.clip(value + c, 0, 1)
    return np.where(value > 0, x * target / np.maximum(value, 1e-12), target)


def contrast(x: Picture, c: Number, rng: np.random.Generator) -> Picture:
    """Multiply the deviations of pixels from the mean of their channel by ``c``."""
    mean = x.mean(axis=(0, 1))
    return (x - mean) * c + mean


def elastic_transform(
    x: Picture, c: tuple[Number, Number, Number], rng: np.random.Generator
) -> Picture:
    """Apply a random affine map, then a smooth random displacement.

    ``c`` holds three values in pixels: the displacement's amplitude, the standard deviation of its
    smoothing, and the maximum shift of the points that define the affine map.
    """
    strength, smoothness, moved = c
    height, width = x.shape[:2]
    center, third = np.array([height, width]) // 2, min(height, width) // 3
    corners = center + third * np.array([[1, 1], [1, -1], [-1, -1]])
    targets = corners + rng.uniform(-moved, moved, (3, 2))
    # The inverse affine map yields the source location of each output pixel.
    back = np.linalg.solve(np.c_[targets, np.ones(3)], corners.astype(float))
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
    at = grid @ back[:2] + back[2]
    x = np.stack([ndimage.map_coordinates(x[..., i], at.transpose(2, 0, 1), order=1, mode="mirror")
                  for i in range(3)], axis=-1)  # fmt: skip

    def displacement() -> np.ndarray:
        drawn = rng.uniform(-1, 1, (height, width))
        if smoothness:
            drawn = ndimage.gaussian_filter(drawn, smoothness, mode="reflect", truncate=3)
        return strength * drawn

    moved_at = grid.transpose(2, 0, 1) + np.stack([displacement(), displacement()])
    return np.stack([ndimage.map_coordinates(x[..., i], moved_at, order=1, mode="reflect")
                     for i in range(3)], axis=-1)  # fmt: skip


def as_image(x: Picture) -> Image.Image:
    """Convert a picture in [0, 1] to an 8-bit Pillow image."""
    return Image.fromarray(np.round(255 * np.clip(x, 0, 1)).astype(np.uint8))


def pixelate(x: Picture, c: Number, rng: np.random.Generator) -> Picture:
    """Downsample an image to a fraction ``c`` of its sides, and upsample it to its full size."""
    height, width = x.shape[:2]
    small = as_image(x).resize((int(width * c), int(height * c)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX)) / 255


def jpeg_compression(x: Picture, c: int, rng: np.random.Generator) -> Picture:
    """Compress an image as JPEG of quality ``c``."""
    buffer = io.BytesIO()
    as_image(x).save(buffer, "JPEG", quality=c)
    with open_image(buffer.getvalue()) as image:
        return np.asarray(image) / 255


def _elastic(size: int, *rows: tuple[Number, ...]) -> list[tuple[Number, ...]]:
    """Convert the constants of `elastic_transform` from fractions of ``size`` to pixels."""
    return [(size * a, size * b, size * c) for a, b, c in rows]


Corruption = Callable[[Any, Any, np.random.Generator], Any]
# The function of each corruption, and its constants at severities 1 to 5 for small and for large
# images.
CORRUPTIONS: dict[str, tuple[Corruption, list[Any], list[Any]]] = {
    "gaussian_noise": (
        gaussian_noise, [0.04, 0.06, 0.08, 0.09, 0.10], [0.08, 0.12, 0.18, 0.26, 0.38],
    ),
    "shot_noise": (shot_noise, [500, 250, 100, 75, 50], [60, 25, 12, 5, 3]),
    "impulse_noise": (
        impulse_noise, [0.01, 0.02, 0.03, 0.05, 0.07], [0.03, 0.06, 0.09, 0.17, 0.27],
    ),
    "defocus_blur": (
        defocus_blur, [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    ),
    "glass_blur": (
        glass_blur, [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    ),
    "motion_blur": (
        motion_blur, [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    ),
    "zoom_blur": (
        zoom_blur, [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)],
        [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
    ),
    "snow": (
        snow,
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
    "frost": (
        frost, [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
        [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    ),
    "fog": (
        fog, [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
        [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    ),
    "brightness": (brightness, [0.05, 0.1, 0.15, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4, 0.5]),
    "contrast": (contrast, [0.75, 0.5, 0.4, 0.3, 0.15], [0.4, 0.3, 0.2, 0.1, 0.05]),
    "elastic_transform": (
        elastic_transform,
        _elastic(32, (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05),
                 (0.1, 0.03, 0.03)),
        _elastic(244, (2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02),
                 (0.12, 0.01, 0.02)),
    ),
    "pixelate": (pixelate, [0.95, 0.9, 0.85, 0.75, 0.65], [0.6, 0.5, 0.4, 0.3, 0.25]),
    "jpeg_compression": (jpeg_compression, [80, 65, 58, 50, 40], [25, 18, 15, 10, 7]),
}  # fmt: skip


def corrupt(
    image: UInt8[np.ndarray, "height width 3"], name: str, severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """Return a corrupted image; its values are truncated to uint8, as in the authors' code.

    Args:
        image: The uint8 RGB image to corrupt.
        name: The name of the corruption, a key of `CORRUPTIONS`.
        severity: The severity of the corruption, from 1 (weakest) to 5.
        rng: The random generator of the corruption.
    """
    function, small, large = CORRUPTIONS[name]
    constants = small if min(image.shape[:2]) <= SMALL else large
    changed = function(image / 255.0, constants[severity - 1], rng)
    return (255 * np.clip(changed, 0, 1)).astype(np.uint8)
