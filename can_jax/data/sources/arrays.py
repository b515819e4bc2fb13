"""The source `arrays`: decoded images in npz files, such as `train-0.npz`."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from can_jax.data.formats.label_range import as_labels
from can_jax.data.sources.base import ArraySource
from can_jax.data.storage.remote import is_remote
from can_jax.data.storage.splits import choose_files, some
from can_jax.utils.archives import read_npz
from can_jax.utils.errors import UserError, one_line


def open_arrays(path: str, split: str, channels: int) -> ArraySource:
    """Read the npz files of a split into memory, in the order of their names.

    A file contains ``images``, uint8 (n, height, width, channels), and optionally ``labels``,
    integers (n,), and ``label_names``. Files with pickled objects are rejected.

    Args:
        path: The path of the folder that contains the npz files, or of a single npz file.
        split: The name of the split, such as `train`.
        channels: The number of channels that the images must have.

    Raises:
        UserError: ``path`` does not exist, is a URL, or contains no image of the split; a file
            cannot be read, or its content is invalid.
    """
    root = existing_root(path)
    shards = shards_of_split(root, split)
    _log_other_arrays(root)
    unused: set[str] = set()
    parts = [_read(shard, channels, unused) for shard in shards]
    if unused:
        logging.warning(
            "%s: the arrays %s are not used; only images, labels and label_names are used",
            path, some(sorted(unused)),
        )  # fmt: skip
    images, labels, all_names = zip(*parts, strict=True)
    shapes = {shard.shape[1:] for shard in images}
    if len(shapes) > 1:
        raise UserError(f"the shards of {path} hold images of several shapes: {sorted(shapes)}")
    labels, names = one_numbering(shards, labels, all_names)
    files = tuple(os.path.realpath(shard) for shard in shards)
    source = ArraySource(np.concatenate(images), np.concatenate(labels), names, files)
    if not source.examples:
        raise UserError(f"the shards {split}*.npz in {path} hold no image")
    return source


def existing_root(path: str) -> Path:
    """Check that the path of npz files exists and is local, and return it as a `Path`.

    Raises:
        UserError: The path does not exist, is a URL, or is a pattern.
    """
    if is_remote(path):
        raise UserError(f"config.data.path={path}: npz files are read from local disks only")
    root = Path(path)
    if not root.exists():
        pattern = "*" in path or "{" in path
        raise UserError(
            f"config.data.path={path} does not exist"
            + ("; npz files are given by their folder, not by a pattern" if pattern else "")
        )
    return root


def one_numbering(
    shards: Sequence[Path], labels: Sequence[np.ndarray], names: Sequence[tuple[str, ...]]
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Renumber the labels of all npz files such that each class name has one label.

    A file without class names is assumed to number its classes like the first file with class
    names.

    Returns:
        The new labels of each file, and the names of all classes.

    Raises:
        UserError: The files have different class names, and in some file, a label has no name or
            two labels share a name.
    """
    first = next((own for own in names if own), ())
    union = tuple(dict.fromkeys(name for own in names for name in own))
    new_label = {name: i for i, name in enumerate(union)}
    renumbered = []
    for shard, own_labels, own in zip(shards, labels, names, strict=True):
        own = own or first
        if own != first or len(union) > len(first):
            nameless = own_labels.max(initial=-1) >= len(own)
            if nameless or any(len(set(each)) < len(each) for each in (own, first)):
                raise UserError(
                    f"{shard}: the shards differ in label_names, so labels are matched by name, "
                    "but a label has no name, or that of another label; give each its own name"
                )
        if own != first:
            table = np.array([new_label[name] for name in own], np.int32)
            own_labels = np.where(own_labels >= 0, table[own_labels], -1)
        renumbered.append(own_labels)
    return renumbered, first if len(union) <= len(first) else union


def shards_of_split(root: Path, split: str) -> list[Path]:
    """Return the paths of a split's npz files in a folder, sorted by name; a list of only ``root``
    if it is a file.

    Raises:
        UserError: There is no npz file of the split, or the file names spell the split in several
            ways.
    """
    if root.is_file():
        choose_files(str(root), [root.name], split, "npz file", listed=True, patterns=False)
        return [root]
    names = sorted(file.name for file in root.glob("*.npz"))
    if not names:
        present = some(sorted(file.name for file in root.iterdir()), 8) or "nothing"
        raise UserError(f"no {split}*.npz in config.data.path={root}, which holds {present}")
    chosen = choose_files(str(root), names, split, "npz file", listed=False, patterns=False)
    return [root / name for name in chosen]


def _log_other_arrays(root: Path) -> None:
    """Log a warning about files that are not read: npz files in subfolders of ``root``, and npy
    files in ``root`` itself."""
    others = (*root.glob("*/*.npz"), *root.glob("*.npy"))
    names = (file.relative_to(root).as_posix() for file in others)
    if unused := sorted(name for name in names if not name.startswith(".")):
        logging.warning(
            "%s: %d files are left out: %s; only npz files directly in this folder are read",
            root, len(unused), some(unused),
        )  # fmt: skip


def _read(
    shard: Path, channels: int, unused: set[str]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return the images, labels and class names in one npz file.

    Args:
        shard: The path of the file.
        channels: The number of channels that the images must have.
        unused: The names of arrays that are not used; updated in place.

    Raises:
        UserError: The file cannot be read, or an array has the wrong type or shape.
    """
    try:
        arrays = read_npz(shard)
    except (UserError, OSError) as error:
        raise UserError(
            f"{shard} cannot be read as an npz file of plain arrays: {one_line(error)}"
        ) from error
    if "images" not in arrays:
        raise UserError(f"{shard} has no array 'images'; it has {', '.join(arrays) or 'no arrays'}")
    unused |= arrays.keys() - {"images", "labels", "label_names"}
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != channels:
        raise UserError(
            f"{shard}: 'images' is {images.dtype} {images.shape}; expected uint8 "
            f"(images, height, width, {channels}), with config.data.channels={channels}"
        )
    labels = arrays.get("labels", np.full(len(images), -1))
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{shard}: 'labels' is {labels.dtype} {labels.shape}; expected one integer for each "
            f"of the {len(images)} images"
        )
    names = tuple(
        name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        for name in np.atleast_1d(arrays.get("label_names", ())).tolist()
    )
    return images, np.maximum(as_labels(labels, str(shard)), np.int32(-1)), names
