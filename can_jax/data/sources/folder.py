"""The source `folder`: image files anywhere below a folder, with optional labels."""

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging

from can_jax.data.formats.label_list import labels_from, read_label_list
from can_jax.data.sources.example_table import Table
from can_jax.data.sources.indexed import IndexedSource
from can_jax.data.sources.stored_index import stored_table
from can_jax.data.storage.files import (
    Names,
    files_in,
    find_images,
    folders_in,
    holds_image,
    is_folder,
    is_image,
    sizes_of,
)
from can_jax.data.storage.remote import is_remote
from can_jax.data.storage.splits import (
    SPELLINGS,
    choose_folder,
    choose_images,
    shown,
    some,
    split_folders,
    split_of_file,
    split_of_folder,
    standard,
)
from can_jax.data.storage.unsupported import log_not_images, remedy
from can_jax.utils.errors import UserError

# Names of folders of photographs, and of folders with the targets of these photographs.
PHOTOS = re.compile(r"images?|imgs?|photos?|pictures?|rgb|inputs?")
TARGETS = re.compile(r"masks?|labels?|targets?|annot|segm?|truth|depth|\bgt\b")
DEEPEST = 4  # levels of nested folders searched for the folders of the splits
Groups = dict[str, list[str]]  # the folders of each split


def open_folder(
    path: str,
    split: str,
    index: str | None = None,
    cache_bytes: int = 0,
    labels: str | None = None,
) -> IndexedSource:
    """Open the images of a split below a folder.

    If `place_of_splits` finds a folder of the split, all images in that folder are used; if not,
    `choose_images` selects the images of the split.

    Args:
        path: The path or URL of the folder that contains the data set.
        split: The name of the split, such as `train`.
        index: The folder of the index; None for the default folder beside the images.
        cache_bytes: The size of a cache of encoded images in memory, in bytes; 0 for none.
        labels: The path of a label list, which replaces the labels derived from folder names; None
            to use folder names.

    Raises:
        UserError: ``path`` is not a folder, no image belongs to the split, several folders match
            the split, or the index or label list is invalid.
    """
    if not is_folder(path):
        raise UserError(f"config.data.path={shown(path)} is not a folder")
    parent, groups = place_of_splits(path)
    root = _folder_of_split(parent, groups, split) or parent
    if index and root == parent and standard(split) != "train":
        images_of_split(path, split)  # raises if no image is of the split; the index cannot tell
    stored = stored_table("folder", root, split, index)
    table = scan_folder(path, split) if stored is None else stored
    first = table.names[int(table.file[0])] if len(table) else ""
    if index and root != path and not is_remote(root) and not Path(root, first).exists():
        root = path  # older versions searched only ``path`` itself for folders of splits
    if root in (path, parent):
        _refuse_splits_as_classes(path, split, groups, table.label_names)
    if labels:
        table = _labeled(table, labels, root)
    return IndexedSource(root, table, cache_bytes=cache_bytes)


def _labeled(table: Table, path: str, root: str) -> Table:
    """Return a table with the labels of a label list, or the unchanged table if the list names no
    file of the table."""
    by_file, classes, missing = labels_from(read_label_list(path), table.names)
    labels = by_file[np.asarray(table.file)]
    count = int((labels < 0).sum())
    if count == len(labels):
        logging.warning(
            "config.data.labels=%s is not used, since it names no image in %s",
            shown(path), shown(root),
        )  # fmt: skip
        return table
    if count or missing:
        logging.warning(
            "config.data.labels=%s: %d of %d images in %s are not listed and have no label; %d "
            "entries match no image", shown(path), count, len(labels), shown(root), missing,
        )  # fmt: skip
    return dataclasses.replace(table, label=labels, label_names=classes)


def _refuse_splits_as_classes(
    path: str, split: str, groups: Groups, classes: tuple[str, ...]
) -> None:
    """Reject an index, built by an older version of `can_jax`, in which the folder of another split
    is a class.

    Raises:
        UserError: A class of the index is the folder of another split.
    """
    for other, folders in groups.items():
        for name in set(folders) & set(classes):
            if other != standard(split):
                raise UserError(
                    f"in the index of {shown(path)}, {shown(name)} is a class, but it is the "
                    f"folder of the split {other}; rebuild the index with python -m "
                    "can_jax.data.index"
                )


def images_of_split(path: str, split: str) -> tuple[str, list[str], list[str]]:
    """Return the folder of a split, the paths of the split's images, and the paths of other files.
    The paths are relative to the folder of the split.

    Raises:
        UserError: ``path`` is not a folder, none of its images belongs to the split, or several
            folders match the split.
    """
    if not is_folder(path):
        raise UserError(f"config.data.path={shown(path)} is not a folder")
    parent, groups = place_of_splits(path)
    inner = _folder_of_split(parent, groups, split)
    _log_layout(parent, groups, split, inner)
    names, others = find_images(inner or parent)
    return inner or parent, names if inner else choose_images(parent, names, split), others


def _log_layout(parent: str, groups: Groups, split: str, inner: str | None) -> None:
    """Log the folders with ambiguous names that are treated as classes. Log the images that are
    left out because they are beside the folder of the split `train`."""
    folders = folders_in(parent)
    stated = {name for group in groups.values() for name in group}
    classes = [name for name in folders if split_of_file(name) and name not in stated]
    doubtful = {name for group in split_folders(classes).values() for name in group}
    if doubtful:
        logging.warning(
            "%s: the folders %s are named like splits but treated as classes, since other folders "
            "are beside them; to read such a folder as a split, set config.data.path to it",
            shown(parent), some(sorted(doubtful)),
        )  # fmt: skip
    if inner and standard(split) == "train":
        beside = [
            name
            for name in folders
            if name not in stated and holds_image(os.path.join(parent, name))
        ]
        beside += sorted(_loose_images(parent))
        if beside:
            logging.warning(
                "%s: images beside the folder %s of the split %r are left out: %s; to "
                "use them, set config.data.path to their folder",
                shown(parent), shown(os.path.relpath(inner, parent)), split, some(beside),
            )  # fmt: skip


def place_of_splits(path: str) -> tuple[str, Groups]:
    """Return the folder that contains the folders of the splits, and a dict from each split to the
    names of its folders.

    The search descends from ``path`` as long as all images are in a single subfolder. If a data set
    consists of `images/train` and `images/val`, for example, the returned folder is `images`. If no
    split has a folder, ``path`` and an empty dict are returned.
    """
    parent = path
    for _ in range(DEEPEST):
        folders = folders_in(parent)
        stated = [name for name in folders if split_of_file(name)]
        others = (name for name in folders if name not in stated)
        beside = bool(stated) and any(holds_image(os.path.join(parent, name)) for name in others)
        flat = [
            name for name in stated if beside and any(_loose_images(os.path.join(parent, name)))
        ]
        if groups := split_folders(stated, beside=beside, flat=flat):
            return parent, groups
        with_images = (name for name in folders if holds_image(os.path.join(parent, name)))
        several = list(itertools.islice(with_images, 2))
        if len(several) != 1 or any(_loose_images(parent)):
            break
        parent = os.path.join(parent, several[0])
    return path, {}


def _loose_images(folder: str) -> Iterator[str]:
    """Yield the names of the visible images directly in a folder."""
    return (name for name in files_in(folder) if is_image(folder, name))


def split_folder(path: str, split: str) -> str | None:
    """Return the path of a split's folder below a folder, or None if the split has no folder."""
    return _folder_of_split(*place_of_splits(path), split)


def _folder_of_split(parent: str, groups: Groups, split: str) -> str | None:
    """Return the path of a split's folder, or None if there is none; ``parent`` and ``groups`` are
    the result of `place_of_splits`."""
    inner = os.path.join(parent, split)
    if standard(split) not in SPELLINGS and is_folder(inner):
        return inner
    chosen = choose_folder(parent, groups, split)
    return None if chosen is None else os.path.join(parent, chosen)


def scan_folder(path: str, split: str) -> Table:
    """Return a table of the images of a split, sorted by name.

    Labels are derived from folder names; see `classes_of`. Images in no class folder have the label
    -1.

    Raises:
        UserError: ``path`` is not a folder or contains no image of the split, or several folders
            match the split.
    """
    root, names, others = images_of_split(path, split)
    log_not_images(root, others)
    if not names:
        raise UserError(
            f"no image below {shown(root)}: "
            f"{remedy(others) or 'no file name ends in .jpg, .png, .webp or the like'}"
        )
    sizes = sizes_of(root, names)
    if (sizes < 0).any():
        gone = [names[i] for i in np.flatnonzero(sizes < 0)]
        logging.warning(
            "%s: %d images that are broken links or not regular files are left out: %s",
            shown(root), len(gone), some(gone, 3),
        )  # fmt: skip
        names = [names[i] for i in np.flatnonzero(sizes >= 0)]
        sizes = sizes[sizes >= 0]
    labels, label_names = classes_of(names)
    if label_names and (loose := [name for name in names if os.sep not in name]):
        logging.warning(
            "%s: %d images are in no class folder and have no label: %s",
            shown(root), len(loose), some(loose, 3),
        )  # fmt: skip
    return Table(
        names=Names.of(names),
        file=np.arange(len(names), dtype=np.int32),
        offset=np.zeros(len(names), np.int64),
        length=np.full(len(names), -1, np.int64),
        label=np.array(labels, np.int32),
        label_names=label_names,
        size=sizes,
    )


def classes_of(names: list[str]) -> tuple[list[int], tuple[str, ...]]:
    """Return the label of each file, and the names of the classes.

    The first folder in a file's path is its class. A file in no folder has the label -1. If at
    least half of the files are in no folder, there are no classes.

    If every path contains a nested folder named after a split, as in `site/train/cat/0.png`, the
    next folder in the path is the class, here `cat`.
    """
    tops = [name.split(os.sep)[0] if os.sep in name else "" for name in names]
    below = [_folder_below_split(name) for name in names]
    if all(below):
        if len(set(tops)) > 1:
            logging.warning(
                "the class of an image is the folder below its split folder, not the top-level "
                "folder; for example, the class of %s is %s. To read only one top-level folder, "
                "set config.data.path to that folder",
                shown(names[0]), shown(below[0]),
            )  # fmt: skip
        tops = below
    loose = tops.count("")
    classes = sorted(set(tops) - {""}) if 2 * loose < len(tops) else []
    if loose < len(tops) and not classes:
        logging.warning(
            "folders such as %s are not treated as classes, since %d of %d images are in no "
            "folder; to use classes, move every image to a class folder",
            shown(next(filter(None, tops))), loose, len(tops),
        )  # fmt: skip
    if len(classes) > 1 and not all(below):
        _log_doubtful_classes(classes, names)
    label_of = {name: i for i, name in enumerate(classes)}
    return [label_of.get(top, -1) for top in tops], tuple(classes)


def _log_doubtful_classes(classes: list[str], names: list[str]) -> None:
    """Log a warning if the folders treated as classes are probably not classes.

    Folders are probably not classes if they include `images` and `masks`, for example, or if every
    image is in a folder named after a split.
    """
    inner = {os.path.basename(os.path.dirname(name)) for name in names}
    pairs = all(any(map(kind.search, map(str.lower, classes))) for kind in (PHOTOS, TARGETS))
    if pairs or all(map(split_of_folder, inner)):
        logging.warning(
            "the folders %s are treated as classes, but may not be classes; one of the images is "
            "%s. To read only one folder, set config.data.path to it",
            some(classes), shown(names[0]),
        )  # fmt: skip


def _folder_below_split(name: str) -> str:
    """Return the first folder in a path that is directly below a nested folder named after a split;
    "" if there is none."""
    folders = name.split(os.sep)[:-1]
    below = (folders[i + 1] for i in range(1, len(folders) - 1) if split_of_folder(folders[i]))
    return next(below, "")
