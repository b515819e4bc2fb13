"""`folder`: image files anywhere below a directory; labels are optional."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from can_jax.errors import UserError
from can_jax.tf import tensorflow

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp"})


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files, in the order of their names."""

    root: Path
    files: tuple[str, ...]  # relative to the root
    labels: Int[np.ndarray, " examples"]
    label_names: tuple[str, ...]

    @property
    def examples(self) -> int:
        """How many files there are."""
        return len(self.files)

    def load(self, index: Any) -> tuple[Any, Any]:
        """Bytes and label of a file, as tensors."""
        tf = tensorflow()
        path = tf.gather(tf.constant([str(self.root / file) for file in self.files]), index)
        return tf.io.read_file(path), tf.gather(tf.constant(self.labels), index)

    def describe(self, index: int) -> str:
        """The path of a file."""
        return str(self.root / self.files[index])


def open_folder(path: str, split: str) -> FolderSource:
    """Find the image files below ``path/split``, or for `train` below ``path`` if there is no
    such folder.

    If no image lies directly in the root, the first folder on the way to an image is its class;
    otherwise there are no labels.

    Raises:
        UserError: no such folder, or no image in it.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"config.data.path={path} is not a folder")
    if (root / split).is_dir():
        root = root / split
    elif split != "train":
        raise UserError(f"there is no folder {root / split} for the split {split!r}")
    files = tuple(sorted(_find(root)))
    if not files:
        suffixes = " ".join(sorted(SUFFIXES))
        raise UserError(f"no image below {root}: no file ends in one of {suffixes}")
    tops = [file.split(os.sep)[0] if os.sep in file else "" for file in files]
    if "" in tops:
        return FolderSource(root, files, np.full(len(files), -1, np.int32), ())
    names, labels = np.unique(tops, return_inverse=True)
    return FolderSource(root, files, labels.astype(np.int32), tuple(map(str, names)))


def _find(root: Path) -> list[str]:
    """Files below the root that are named as images, relative to it; hidden ones are left out."""
    found = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                found.append(os.path.relpath(os.path.join(folder, name), root))
    return found
