"""The source `shapes`: synthetic images of geometric figures in ten classes, which need no
download.

An image shows nine figures of the same class. Only the outline of the figures distinguishes the
classes. Position, size, angle and color of each figure, the background and its shading vary at
random. The nearest neighbor of an image in pixel space can therefore be of any class.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from can_jax.data.sources.base import ArraySource
from can_jax.utils.archives import map_npy
from can_jax.utils.cpu import usable_cores
from can_jax.utils.files import replacing, user_cache

LABEL_NAMES = (
    "disc", "square", "triangle", "star", "cross", "ring", "crescent", "heart", "bars", "hourglass",
)  # fmt: skip
CELLS = 3  # figures along each side of an image
SUPERSAMPLING = 2
CHUNK = 256  # images whose appearance is sampled together
PAINTED = 16  # images rendered together, few enough for a core's cache
TEST_COUNT = 2000
KEPT_BYTES = 4 * 2**20  # the size from which images are cached on disk: a second of rendering
KEPT_FILES = 8  # files retained in the cache

Plane = Float[np.ndarray, "images height width"]


def outline(label: int, x: Plane, y: Plane) -> Bool[np.ndarray, "images height width"]:
    """Return a mask of the points that are inside a figure; a figure extends over about [-1, 1] in
    both coordinates.

    Args:
        label: The class of the figure, an index into `LABEL_NAMES`.
        x, y: The coordinates of the points relative to the center of the figure; y points down.
    """
    match LABEL_NAMES[label]:
        case "disc":
            return np.hypot(x, y) < 0.9
        case "square":
            return np.maximum(abs(x), abs(y)) < 0.8
        case "triangle":
            return (y < 0.65) & (y > 1.9 * abs(x) - 1.0)
        case "star":
            return np.hypot(x, y) < 0.68 + 0.36 * np.cos(5 * np.arctan2(y, x))
        case "cross":
            return (np.minimum(abs(x), abs(y)) < 0.27) & (np.maximum(abs(x), abs(y)) < 0.95)
        case "ring":
            return abs(np.hypot(x, y) - 0.75) < 0.2
        case "crescent":
            return (np.hypot(x, y) < 0.95) & (np.hypot(x - 0.42, y) > 0.72)
        case "heart":
            return (1.25 * x) ** 2 + (-1.15 * y - 0.62 * np.sqrt(abs(x)) + 0.05) ** 2 < 0.85
        case "bars":
            return (abs(x) < 0.9) & ((abs(y - 0.55) < 0.26) | (abs(y + 0.55) < 0.26))
        case _:
            return (abs(x) < abs(y) + 0.06) & (abs(y) < 0.85)


class Appearance(NamedTuple):
    """The random properties of a batch of synthetic images.

    The first axis of each array indexes the images. Properties of figures are sampled per figure,
    those of the background per image, and the noise per pixel and channel.

    Attributes:
        rows, columns: The vertical and horizontal coordinates of an image's supersampled points on
            the grid of figures, in units of a grid cell.
        scale: The size of each figure as a fraction of its grid cell.
        turn: The rotation of each figure in radians.
        dy, dx: The displacement of each figure from the center of its cell, in units of half a
            cell.
        slope: The change of the background's color from the center of the image to its border,
            vertically and horizontally.
        back: The color of the background, from 0 (black) to 1 (white) in each channel.
        shift: The color of each figure relative to that of the background. `paint` reverses the
            sign of the shift in a channel where the figure's color would leave the range 0 to 1.
        noise: The noise that is added to each pixel and channel, where black is 0 and white is 1.
    """

    rows: Float[np.ndarray, "images points"]
    columns: Float[np.ndarray, "images points"]
    scale: Float[np.ndarray, "images cells cells"]
    turn: Float[np.ndarray, "images cells cells"]
    dy: Float[np.ndarray, "images cells cells"]
    dx: Float[np.ndarray, "images cells cells"]
    slope: Float[np.ndarray, "images 2 1 1 channels"]
    back: Float[np.ndarray, "images 1 1 channels"]
    shift: Float[np.ndarray, "images cells cells channels"]
    noise: Float[np.ndarray, "images height width channels"]


def sample_appearance(
    rng: np.random.Generator, count: int, size: tuple[int, int], channels: int
) -> Appearance:
    """Sample the random properties of ``count`` images.

    The grid of figures has a random offset, and wraps around at the borders of the image.
    """
    rows, columns = (
        (np.linspace(0, CELLS, n * SUPERSAMPLING) + rng.uniform(0, CELLS, (count, 1))) % CELLS
        for n in size
    )
    limits = ((0.55, 0.9), (-0.5, 0.5), (-0.2, 0.2), (-0.2, 0.2))
    scale, turn, dy, dx = (rng.uniform(*pair, (count, CELLS, CELLS)) for pair in limits)
    slope = rng.uniform(-0.15, 0.15, (2, count, 1, 1, channels)).swapaxes(0, 1)
    back = rng.uniform(0.1, 0.9, (count, 1, 1, channels))
    shift = rng.uniform(0.25, 0.6, (count, CELLS, CELLS, channels))
    shift *= rng.choice([-1.0, 1.0], shift.shape)
    noise = rng.normal(0.0, 0.005, (count, *size, channels))
    return Appearance(rows, columns, scale, turn, dy, dx, slope, back, shift, noise)


def paint(
    labels: Int[np.ndarray, " images"], looks: Appearance
) -> UInt8[np.ndarray, "images height width channels"]:
    """Render one image for each label. An image shows a grid of figures of its class, which differ
    in size, angle and color."""
    height, width = looks.noise.shape[1:3]
    y, x = looks.rows[:, :, None], looks.columns[:, None, :]
    cell = np.arange(CELLS)
    # Products with one-hot matrices spread a value of each cell over its points. Indexing would do
    # the same, but takes several times as long.
    down = (y.astype(int) == cell).astype(float)
    across = (x.astype(int) == cell[:, None]).astype(float)
    cos, sin, scale, dy, dx = (
        down @ values @ across
        for values in (np.cos(looks.turn), np.sin(looks.turn), looks.scale, looks.dy, looks.dx)
    )
    dy = 2 * (y % 1) - 1 - dy
    dx = 2 * (x % 1) - 1 - dx
    u = (cos * dx + sin * dy) / scale
    v = (-sin * dx + cos * dy) / scale
    inside = np.zeros(u.shape, np.uint8)
    for label in range(len(LABEL_NAMES)):
        chosen = labels == label
        inside[chosen] = outline(label, u[chosen], v[chosen])
    parts = [
        inside[:, i::SUPERSAMPLING, j::SUPERSAMPLING]
        for i, j in np.ndindex(SUPERSAMPLING, SUPERSAMPLING)
    ]
    coverage = np.asarray(sum(parts)) / len(parts)

    # The shading of the background gives patches without a figure some content.
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in (height, width)), indexing="ij")
    shade = looks.slope[:, 0] * rows[..., None] + looks.slope[:, 1] * columns[..., None]
    back, shift = looks.back, looks.shift
    front = np.where((back + shift > 1) | (back + shift < 0), back - shift, back + shift)
    down, across = down[:, None, ::SUPERSAMPLING], across[:, None, :, ::SUPERSAMPLING]
    front = np.moveaxis(down @ np.moveaxis(front, -1, 1) @ across, 1, -1)
    pixels = back + shade + (front - back - shade) * coverage[..., None] + looks.noise
    return (255 * np.clip(pixels, 0, 1)).astype(np.uint8)


def draw(
    labels: Int[np.ndarray, " images"],
    rng: np.random.Generator,
    size: tuple[int, int],
    channels: int,
) -> UInt8[np.ndarray, "images height width channels"]:
    """Render one image for each label, with random properties, on all available cores."""
    count = len(labels)
    images = np.empty((count, *size, channels), np.uint8)

    def fill(start: int, looks: Appearance) -> None:
        end = start + len(looks.noise)
        images[start:end] = paint(labels[start:end], looks)

    parts = []
    with ThreadPoolExecutor(usable_cores()) as threads:
        for begin, looks in sampled(rng, count, size, channels):
            for first in range(0, len(looks.noise), PAINTED):
                few = Appearance(*(values[first : first + PAINTED] for values in looks))
                parts.append(threads.submit(fill, begin + first, few))
    for part in parts:
        part.result()  # re-raises an exception of the thread
    return images


@dataclasses.dataclass(frozen=True)
class ShapesSource(ArraySource):
    """The synthetic data set in memory, with the generating factors of its images.

    Attributes:
        split: The name of the split, which determines the seed of the images.
    """

    split: str = "train"

    def factors(self) -> dict[str, np.ndarray]:
        """Return the generating factors that have one value per image.

        The factors are the class, the offset of the grid, the color and mean shading of the
        background, and the mean size of the figures. To compute the factors, the appearance of all
        images is sampled again from their seed, which takes a tenth of the rendering time.
        """
        count, *size, channels = self.images.shape
        rng, labels = start(count, (size[0], size[1]), channels, self.split)
        looks = [look for _, look in sampled(rng, count, (size[0], size[1]), channels)]

        def joined(value: Callable[[Appearance], np.ndarray]) -> np.ndarray:
            return np.concatenate([value(look) for look in looks])

        names = ("red", "green", "blue") if channels == 3 else tuple(map(str, range(channels)))
        background = joined(lambda look: look.back[:, 0, 0])
        return {
            "class": labels,
            "row": joined(lambda look: look.rows[:, 0] % 1),
            "column": joined(lambda look: look.columns[:, 0] % 1),
            **{f"background {name}": background[:, i] for i, name in enumerate(names)},
            "shading of rows": joined(lambda look: look.slope[:, 0].mean(axis=(1, 2, 3))),
            "shading of columns": joined(lambda look: look.slope[:, 1].mean(axis=(1, 2, 3))),
            "size": joined(lambda look: look.scale.mean(axis=(1, 2))),
        }


def start(
    count: int, size: tuple[int, int], channels: int, split: str
) -> tuple[np.random.Generator, Int[np.ndarray, " images"]]:
    """Return the random generator for the images of a split, and the labels of these images."""
    rng = np.random.default_rng([0 if split == "train" else 1, *size, channels])
    return rng, rng.permutation(np.arange(count) % len(LABEL_NAMES)).astype(np.int32)


def sampled(
    rng: np.random.Generator, count: int, size: tuple[int, int], channels: int
) -> Iterator[tuple[int, Appearance]]:
    """Yield the appearance of up to `CHUNK` images at a time, with the index of the first of these
    images."""
    for first in range(0, count, CHUNK):
        yield first, sample_appearance(rng, min(CHUNK, count - first), size, channels)


def open_shapes(count: int, size: tuple[int, int], channels: int, split: str) -> ArraySource:
    """Return the synthetic data set: ``count`` images for the split `train`, `TEST_COUNT` images
    for any other split.

    The images depend only on the arguments, up to rounding differences between machines. Data sets
    of at least `KEPT_BYTES` are cached in the user's cache folder, because reading them is much
    faster than rendering.

    Args:
        count: The number of training images.
        size: The height and width of the images in pixels.
        channels: The number of color channels.
        split: The name of the split; all splits other than `train` contain the same images.
    """
    count = count if split == "train" else TEST_COUNT
    begin = [0 if split == "train" else 1, *size, channels]
    rng, labels = start(count, size, channels, split)

    def source(images: np.ndarray) -> ShapesSource:
        return ShapesSource(images, labels, LABEL_NAMES, split=split)

    # The images depend on the code of this file, so each version of it has its own cache.
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    cache = user_cache()
    if cache is None:
        return source(draw(labels, rng, size, channels))
    path = cache / "shapes" / f"{'x'.join(map(str, [count, *begin]))}-{version}.npy"
    with contextlib.suppress(OSError, EOFError, ValueError):  # missing or damaged: rendered again
        images = np.array(map_npy(path))
        if images.shape == (count, *size, channels) and images.dtype == np.uint8:
            return source(images)
    images = draw(labels, rng, size, channels)
    if images.nbytes >= KEPT_BYTES:
        with contextlib.suppress(OSError):  # without a cache, each start renders
            keep(path, images)
    return source(images)


def keep(path: Path, images: np.ndarray) -> None:
    """Write images to the cache atomically, and delete all but the `KEPT_FILES` newest files in the
    cache folder.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, f".{os.getpid()}") as own, own.open("wb") as file:
        np.save(file, images)
    files = sorted(path.parent.glob("*.npy"), key=lambda file: file.stat().st_mtime)
    for old in files[:-KEPT_FILES]:
        old.unlink()
