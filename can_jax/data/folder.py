"""`folder`: image files anywhere below a directory; labels are optional."""

import os
from pathlib import Path

import numpy as np
from absl import logging

from can_jax.data.files import Names, find_images
from can_jax.data.indexed import IndexedSource, table_of
from can_jax.data.splits import choose_folder, choose_images, shown, some, split_folders, standard
from can_jax.data.table import Table
from can_jax.errors import UserError


def open_folder(
    path: str, split: str, index: str | None = None, cache_bytes: int = 0
) -> IndexedSource:
    """The images below ``path/split``, or for `train` below ``path`` if there is no such folder.

    Raises:
        UserError: no such folder, or no image in it.
    """
    if not Path(path).is_dir():
        raise UserError(f"config.data.path={shown(path)} is not a folder")
    root = split_folder(path, split) or path
    if index and root == path and standard(split) != "train":
        images_of_split(path, split)  # an index does not tell the splits apart
    table = table_of("folder", root, split, index, lambda: scan_folder(path, split))
    if root == path:
        _refuse_splits_as_classes(path, split, table.label_names)
    return IndexedSource(root, table, cache_bytes=cache_bytes)


def _refuse_splits_as_classes(path: str, split: str, classes: tuple[str, ...]) -> None:
    """Refuse an index in which the folder of another split is a class, as older versions wrote.

    Raises:
        UserError: There is such a class.
    """
    for other, folders in split_folders(os.listdir(path)).items():
        for name in set(folders) & set(classes):
            if other != standard(split):
                raise UserError(
                    f"the index of {shown(path)} takes {shown(name)}, which is the split {other}, "
                    "for a class; build it again with python -m can_jax.data.index"
                )


def images_of_split(path: str, split: str) -> tuple[str, list[str], list[str]]:
    """Return the folder of a split, its images and its other files, relative to that folder.

    Raises:
        UserError: ``path`` is no folder, or no image in it is known to belong to the split.
    """
    if not Path(path).is_dir():
        raise UserError(f"config.data.path={shown(path)} is not a folder")
    inner = split_folder(path, split)
    names, others = find_images(inner or path)
    return inner or path, names if inner else choose_images(path, names, split), others


def split_folder(path: str, split: str) -> str | None:
    """Return the folder of a split within a folder; None if it has none of its own."""
    inner = os.path.join(path, split)
    if Path(inner).is_dir():
        return inner
    folders = [name for name in os.listdir(path) if Path(path, name).is_dir()]
    chosen = choose_folder(path, folders, split)
    return None if chosen is None else os.path.join(path, chosen)


def scan_folder(path: str, split: str) -> Table:
    """Return the images of a split, in the order of their names.

    The first folder on the way to an image is its class; images directly in the folder have no
    label.

    Raises:
        UserError: There is none.
    """
    root, names, others = images_of_split(path, split)
    if others:
        logging.warning(
            "%s: %d files are left out, not being images by name or content, such as %s",
            shown(root), len(others), some(others, 3),
        )  # fmt: skip
    if not names:
        raise UserError(
            f"no image below {shown(root)}: no file is named .jpg, .png, .webp or the like"
        )
    labels, label_names = classes_of(names)
    if label_names and (loose := [name for name in names if os.sep not in name]):
        logging.warning(
            "%s: %d images lie in no class folder and have no label, such as %s",
            shown(root), len(loose), some(loose, 3),
        )  # fmt: skip
    return Table(
        names=Names.of(names),
        file=np.arange(len(names), dtype=np.int32),
        offset=np.zeros(len(names), np.int64),
        length=np.full(len(names), -1, np.int64),
        label=np.array(labels, np.int32),
        label_names=label_names,
    )


def classes_of(names: list[str]) -> tuple[list[int], tuple[str, ...]]:
    """Return the label of each file and the names of the classes, its first folders.

    A file in no folder has the label -1. Where most files are in none, folders are no classes.
    """
    tops = [name.split(os.sep)[0] if os.sep in name else "" for name in names]
    classes = sorted(set(tops) - {""}) if 2 * tops.count("") < len(tops) else []
    number = {name: i for i, name in enumerate(classes)}
    return [number.get(top, -1) for top in tops], tuple(classes)
