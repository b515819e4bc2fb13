"""`shapes`: ten kinds of drawn figures, for a first run without any download.

An image shows nine figures of one kind. What tells the classes apart is the outline alone: place,
size, angle and colour of each figure, the background and its shading vary freely, so that
neighbours in pixel space are of any class.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from can_jax.data.source import ArraySource

LABEL_NAMES = (
    "disc", "square", "triangle", "star", "cross", "ring", "crescent", "heart", "bars", "hourglass",
)  # fmt: skip
CELLS = 3  # figures along each side of an image
SUPERSAMPLING = 2
CHUNK = 256  # images drawn at a time, which bounds the memory
TEST_COUNT = 2000

Plane = Float[np.ndarray, "images height width"]


def outline(label: int, x: Plane, y: Plane) -> Bool[np.ndarray, "images height width"]:
    """Whether points are inside the figure, which fills about [-1, 1] in both coordinates."""
    radius = np.hypot(x, y)
    angle = np.arctan2(y, x)
    match LABEL_NAMES[label]:
        case "disc":
            return radius < 0.9
        case "square":
            return np.maximum(abs(x), abs(y)) < 0.8
        case "triangle":
            return (y < 0.65) & (y > 1.9 * abs(x) - 1.0)
        case "star":
            return radius < 0.68 + 0.36 * np.cos(5 * angle)
        case "cross":
            return (np.minimum(abs(x), abs(y)) < 0.27) & (np.maximum(abs(x), abs(y)) < 0.95)
        case "ring":
            return (radius < 0.95) & (radius > 0.55)
        case "crescent":
            return (radius < 0.95) & (np.hypot(x - 0.42, y) > 0.72)
        case "heart":
            return (1.25 * x) ** 2 + (-1.15 * y - 0.62 * np.sqrt(abs(x)) + 0.05) ** 2 < 0.85
        case "bars":
            return (abs(x) < 0.9) & ((abs(y - 0.55) < 0.26) | (abs(y + 0.55) < 0.26))
        case _:
            return (abs(x) < abs(y) + 0.06) & (abs(y) < 0.85)


def draw_chunk(
    rng: np.random.Generator,
    labels: Int[np.ndarray, " images"],
    size: tuple[int, int],
    channels: int,
) -> UInt8[np.ndarray, "images height width channels"]:
    """Draw an image a label: a grid of figures of that kind, each with its own looks."""
    count, (height, width) = len(labels), size
    # Where points lie on the grid, which starts anywhere and is continued over the border.
    y, x = (
        (np.linspace(0, CELLS, n * SUPERSAMPLING) + rng.uniform(0, CELLS, (count, 1))) % CELLS
        for n in (height, width)
    )
    y, x = y[:, :, None], x[:, None, :]
    cell_of = np.arange(count)[:, None, None], y.astype(int), x.astype(int)

    def drawn(low: float, high: float) -> Plane:
        """A number for each figure, spread over its cell."""
        return rng.uniform(low, high, (count, CELLS, CELLS))[cell_of]

    scale, turn = drawn(0.55, 0.9), drawn(-0.5, 0.5)
    dy = 2 * (y % 1) - 1 - drawn(-0.2, 0.2)
    dx = 2 * (x % 1) - 1 - drawn(-0.2, 0.2)
    u = (np.cos(turn) * dx + np.sin(turn) * dy) / scale
    v = (-np.sin(turn) * dx + np.cos(turn) * dy) / scale
    inside = np.zeros(u.shape, bool)
    for label in range(len(LABEL_NAMES)):
        chosen = labels == label
        inside[chosen] = outline(label, u[chosen], v[chosen])
    coverage = inside.reshape(count, height, SUPERSAMPLING, width, SUPERSAMPLING).mean((2, 4))

    # The background shades from side to side, so that a patch without a figure shows something too.
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij")
    slope = rng.uniform(-0.15, 0.15, (2, count, 1, 1, channels))
    shade = slope[0] * rows[..., None] + slope[1] * columns[..., None]
    back = rng.uniform(0.1, 0.9, (count, 1, 1, channels))
    shift = rng.uniform(0.25, 0.6, (count, CELLS, CELLS, channels))
    shift *= rng.choice([-1.0, 1.0], shift.shape)
    front = np.where((back + shift > 1) | (back + shift < 0), back - shift, back + shift)
    coarse = (cell_of[0], cell_of[1][:, ::SUPERSAMPLING], cell_of[2][:, :, ::SUPERSAMPLING])
    pixels = back + shade + (front[coarse] - back - shade) * coverage[..., None]
    pixels += rng.normal(0.0, 0.005, pixels.shape)
    return (255 * np.clip(pixels, 0, 1)).astype(np.uint8)


def open_shapes(count: int, size: tuple[int, int], channels: int, split: str) -> ArraySource:
    """The drawn data set: ``count`` images for the split `train`, 2000 for any other.

    The same arguments give the same images on every machine.
    """
    count = count if split == "train" else TEST_COUNT
    rng = np.random.default_rng([0 if split == "train" else 1, *size, channels])
    labels = rng.permutation(np.arange(count) % len(LABEL_NAMES)).astype(np.int32)
    starts = range(0, count, CHUNK)
    images = [draw_chunk(rng, labels[i : i + CHUNK], size, channels) for i in starts]
    return ArraySource(np.concatenate(images), labels, LABEL_NAMES)
