"""A quick survey of data: its source, and the size and a lower bound of the number of images."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from can_jax.data.decoding.open_image import open_image
from can_jax.data.sources.arrays import shards_of_split
from can_jax.data.sources.detect import MOST, kind_of
from can_jax.data.storage.reading import open_random
from can_jax.utils.archives import npz_shapes
from can_jax.utils.errors import UserError


class Survey(NamedTuple):
    """The result of a survey of data.

    Attributes:
        source: The kind of source, a value of ``data.source``.
        images: The number of images among the first `MOST` files; None if it was not counted.
        side: The median of the shorter sides of some images in pixels; None if unknown.
        shape: The height and width that all images have; None if they may differ.
        labeled: Whether the images have labels, as far as known.
    """

    source: str
    images: int | None = None
    side: int | None = None
    shape: tuple[int, int] | None = None
    labeled: bool = False


def survey(path: str, split: str = "train") -> Survey:
    """Survey the data at a path: images below a folder, shards, or arrays.

    Args:
        path: A folder, a file, or a pattern of shards.
        split: The name of the split, for arrays.

    Raises:
        UserError: The path does not exist, or holds no data of a known kind.
    """
    try:
        kind = kind_of(path)
    except UserError as error:
        raise UserError(f"--data={error}") from error
    if kind.source == "arrays":
        return _of_arrays(path, split)
    if kind.source != "folder":
        return Survey(kind.source)
    sides = [side for file in kind.files if (side := _side(file))]
    return Survey("folder", kind.images, round(float(np.median(sides))) if sides else None)


def _of_arrays(path: str, split: str) -> Survey:
    """Read the shape of the arrays from the header of the first shard."""
    images, labeled, shape = 0, True, (0, 0)
    for shard in shards_of_split(Path(path), split):
        shapes = npz_shapes(shard)
        if len(shapes.get("images", ())) != 4:
            raise UserError(f"{shard} holds no images (n, height, width, channels)")
        count, height, width, _ = shapes["images"]
        labeled &= "labels" in shapes
        images, shape = images + count, (height, width)
    return Survey("arrays", min(images, MOST), min(shape), shape, labeled)


def _side(file: str) -> int | None:
    try:
        with open_image(open_random(file).read(0, -1)) as image:
            return min(image.size)
    except Exception:  # Pillow raises many types for broken files, which the run reports.
        return None
