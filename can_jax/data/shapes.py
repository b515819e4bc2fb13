"""`shapes`: ten kinds of drawn figures, for a first run without any download.

What tells the classes apart is the outline alone. Place, size, angle, both colours, background
texture and pixel noise vary freely and say nothing about the class, so that neighbours
in pixel space are of any class.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from can_jax.data.source import ArraySource

LABEL_NAMES = (
    "disc", "square", "triangle", "star", "cross", "ring", "crescent", "heart", "bars", "hourglass",
)  # fmt: skip
SUPERSAMPLING = 2
CHUNK = 256  # images drawn at a time, which bounds the memory
TEST_COUNT = 2000

Plane = Float[np.ndarray, "images height width"]
Column = Float[np.ndarray, "images 1 1"]


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


def gratings(
    rng: np.random.Generator, x: Plane, y: Plane
) -> Float[np.ndarray, "images height width 1"]:
    """A sine grating of random direction, frequency and phase for each image, in [-1, 1]."""
    draw = rng.uniform(size=(3, len(x), 1, 1))
    direction, cycles, phase = 2 * np.pi * draw[0], 1 + 5 * draw[1], 2 * np.pi * draw[2]
    wave = np.pi * cycles * (np.cos(direction) * x + np.sin(direction) * y) + phase
    return np.sin(wave)[..., None]


def draw_chunk(
    rng: np.random.Generator, labels: Int[np.ndarray, " images"], size: tuple[int, int], channels: int
) -> UInt8[np.ndarray, "images height width channels"]:
    """Draw one figure a label."""
    count, (height, width) = len(labels), size
    fine = (height * SUPERSAMPLING, width * SUPERSAMPLING)
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in fine), indexing="ij")
    y, x = (np.broadcast_to(p, (count, *fine)) for p in (rows, columns))

    def column(low: float, high: float) -> Column:
        return rng.uniform(low, high, (count, 1, 1))

    scale, turn = column(0.42, 0.68), column(-0.5, 0.5)
    dx, dy = x - column(-0.3, 0.3), y - column(-0.3, 0.3)
    u = (np.cos(turn) * dx + np.sin(turn) * dy) / scale
    v = (-np.sin(turn) * dx + np.cos(turn) * dy) / scale
    inside = np.zeros((count, *fine), bool)
    for label in range(len(LABEL_NAMES)):
        chosen = labels == label
        inside[chosen] = outline(label, u[chosen], v[chosen])
    coverage = inside.reshape(count, height, SUPERSAMPLING, width, SUPERSAMPLING).mean((2, 4))

    # Two colours that differ somewhere, on textures that reach across both.
    back = rng.uniform(0.1, 0.9, (count, 1, 1, channels))
    shift = rng.choice([-1.0, 1.0], back.shape) * rng.uniform(0.25, 0.6, back.shape)
    front = np.where((back + shift > 1) | (back + shift < 0), back - shift, back + shift)
    coarse = slice(SUPERSAMPLING // 2, None, SUPERSAMPLING)
    x, y = x[:, coarse, coarse], y[:, coarse, coarse]
    tint = rng.uniform(-0.12, 0.12, (2, count, 1, 1, channels))
    back = back + tint[0] * gratings(rng, x, y)
    front = front + tint[1] * gratings(rng, x, y)
    pixels = back + (front - back) * coverage[..., None]
    pixels += rng.normal(0.0, 0.02, pixels.shape)
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
