"""A quick survey of a data set: its kind, and the number and size of its images."""

from typing import NamedTuple

import numpy as np

from can_jax.data.decoding.open_image import open_image
from can_jax.data.sources.arrays import existing_root, shards_of_split
from can_jax.data.sources.detect import MOST, kind_of
from can_jax.data.storage.reading import open_random
from can_jax.utils.archives import npz_shapes
from can_jax.utils.errors import UserError


class Survey(NamedTuple):
    """The result of a survey of a data set.

    Attributes:
        source: The name of the data source that can read the data, a value of ``data.source``.
        images: The number of images, at most `MOST`; None if they were not counted.
        side: The shorter side of the images in pixels; for image files, the median of a sample.
            None if unknown.
        shape: The common height and width of all images in pixels; None if they may differ.
        labeled: Whether all npz files contain labels; False for other data, which is not examined
            for labels.
    """

    source: str
    images: int | None = None
    side: int | None = None
    shape: tuple[int, int] | None = None
    labeled: bool = False


def survey(path: str, split: str = "train") -> Survey:
    """Survey the data at a path without reading all of it.

    Args:
        path: The path of a folder or file, or a pattern of shards.
        split: The split to which the npz files must belong; not used for other data.

    Raises:
        UserError: The path does not exist, or contains no data of a supported kind; an npz file is
            damaged, or none belongs to the split.
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
    """Return the survey of the npz files of a split, from the headers of their arrays."""
    images, labeled, shape = 0, True, (0, 0)
    for shard in shards_of_split(existing_root(path), split):
        shapes = npz_shapes(shard)
        if len(shapes.get("images", ())) != 4:
            raise UserError(f"{shard} has no array 'images' of shape (n, height, width, channels)")
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
