"""A quick look at data: its source, the size of its images, and how many there are at least."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from can_jax.data.decoding.open_image import open_image
from can_jax.data.sources.arrays import shards_of_split
from can_jax.data.storage.find import is_shard
from can_jax.utils.archives import npz_shapes
from can_jax.utils.errors import UserError

MOST = 20_000  # files that are counted
MEASURED = 64  # images whose size is read
TARS = re.compile(r"\.(tar|tgz|tar\.\w+)\b")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Survey(NamedTuple):
    """The result of a look at data.

    Attributes:
        source: The kind of source, a value of ``data.source``.
        images: The number of images, at most `MOST`; None if it was not counted.
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
    """Look at the data in a path: images below a folder, shards, or arrays.

    Args:
        path: A folder, a file, or a pattern of shards.
        split: The name of the split, for arrays.

    Raises:
        UserError: The path does not exist, or holds no data of a known kind.
    """
    pattern = bool(re.search(r"[*?{]|::|://", path))
    if not pattern and not os.path.exists(path):
        raise UserError(f"--data={path} does not exist")
    if pattern or os.path.isfile(path):
        return _of_file(path, split)
    images = 0
    sides: list[int] = []
    for file in _files_below(path):
        name = file.lower()
        if name.endswith(".npz"):
            return _of_arrays(path, split)
        if is_shard(os.path.basename(file), "tar"):
            return Survey("webdataset")
        if is_shard(os.path.basename(file), "tfrecord"):
            return Survey("tfrecord")
        if name.endswith(IMAGES):
            images += 1
            if len(sides) < MEASURED and (side := _side(file)):
                sides.append(side)
        if images >= MOST:
            break
    if not images:
        raise UserError(
            f"--data={path} holds no images, shards (.tar, .tfrecord) or arrays (.npz); another "
            "layout is set by --config.data.source, see docs/data.md"
        )
    return Survey("folder", images, round(float(np.median(sides))) if sides else None)


def _of_file(path: str, split: str) -> Survey:
    if path.endswith(".npz"):
        return _of_arrays(path, split)
    return Survey("webdataset" if TARS.search(path) else "tfrecord")


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


def _files_below(path: str) -> Iterator[str]:
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            yield os.path.join(folder, name)


def _side(file: str) -> int | None:
    try:
        with open_image(Path(file).read_bytes()) as image:
            return min(image.size)
    except Exception:  # Pillow raises many types for broken files, which the run reports.
        return None
