"""`folder`: image files anywhere below a directory; labels are optional."""

import os
from pathlib import Path

import numpy as np
from absl import logging

from can_jax.data.files import Names, find_images
from can_jax.data.indexed import IndexedSource, table_of
from can_jax.data.table import Table
from can_jax.errors import UserError


def open_folder(
    path: str, split: str, index: str | None = None, cache_bytes: int = 0
) -> IndexedSource:
    """The images below ``path/split``, or for `train` below ``path`` if there is no such folder.

    Raises:
        UserError: no such folder, or no image in it.
    """
    root = split_folder(path, split)
    table = table_of("folder", root, split, index, lambda: scan_folder(root))
    return IndexedSource(root, table, cache_bytes=cache_bytes)


def split_folder(path: str, split: str) -> str:
    """The folder of a split."""
    if not Path(path).is_dir():
        raise UserError(f"config.data.path={path} is not a folder")
    inner = os.path.join(path, split)
    if not Path(inner).is_dir() and split != "train":
        raise UserError(f"there is no folder {inner} for the split {split!r}")
    return inner if Path(inner).is_dir() else path


def scan_folder(root: str) -> Table:
    """The images below a folder, in the order of their names.

    If none lies directly in the root, the first folder on the way to an image is its class;
    otherwise there are no labels.

    Raises:
        UserError: there is none.
    """
    names, others = find_images(root)
    if others:
        logging.warning(
            "%s: %d files are left out, not being named as images, such as %s",
            root, len(others), ", ".join(others[:3]),
        )  # fmt: skip
    if not names:
        raise UserError(f"no image below {root}: no file is named .jpg, .png, .webp or the like")
    labels, label_names = classes_of(names)
    return Table(
        names=Names.of(names),
        file=np.arange(len(names), dtype=np.int32),
        offset=np.zeros(len(names), np.int64),
        length=np.full(len(names), -1, np.int64),
        label=np.array(labels, np.int32),
        label_names=label_names,
    )


def classes_of(names: list[str]) -> tuple[list[int], tuple[str, ...]]:
    """The label of each file, -1 if there are no classes, and the names of the classes."""
    tops = [name.split(os.sep)[0] if os.sep in name else "" for name in names]
    classes = [] if "" in tops else sorted(set(tops))
    number = {name: i for i, name in enumerate(classes)}
    return [number.get(top, -1) for top in tops], tuple(classes)
