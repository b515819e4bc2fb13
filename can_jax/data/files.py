"""Files by name: which ones belong to a data set, and bytes from the middle of them.

Local files are read with the operating system alone; names such as `gs://…` go through
TensorFlow's file systems.
"""

import collections
import glob
import itertools
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from can_jax.errors import UserError
from can_jax.tf import tensorflow

IMAGES = r"jpe?g|jpe|jfif|a?png|gif|bmp|dib|webp|tiff?|avif|mpo|jp2|ico|p[bgpn]m"
IMAGE_NAME = re.compile(rf"\.({IMAGES})$", re.IGNORECASE)
OPEN_FILES = 256  # kept open at once


def is_remote(path: str) -> bool:
    """Whether a path names a file system of TensorFlow's."""
    return "://" in path


class RandomFile:
    """A file that is read at any place, by many threads at once."""

    def __init__(self, path: str):
        self._gfile: Any = None
        if is_remote(path):
            gfile = tensorflow().io.gfile
            self.size = int(gfile.stat(path).length)
            self._gfile, self._lock = gfile.GFile(path, "rb"), threading.Lock()
        else:
            self._descriptor = os.open(path, os.O_RDONLY)
            self.size = os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from an offset on, fewer where the file ends; all of them for a length of -1."""
        if length < 0:
            length = self.size - offset
        if self._gfile is None:
            return os.pread(self._descriptor, length, offset)
        with self._lock:
            self._gfile.seek(offset)
            return self._gfile.read(length)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            os.close(self._descriptor)


def open_file(path: str) -> Any:
    """A file to be read from its start on."""
    return tensorflow().io.gfile.GFile(path, "rb") if is_remote(path) else open(path, "rb")


class OpenFiles:
    """The files used last, kept open."""

    def __init__(self) -> None:
        self._files: collections.OrderedDict[str, RandomFile] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, path: str) -> RandomFile:
        with self._lock:
            file = self._files.pop(path, None)
        file = file or RandomFile(path)
        with self._lock:
            self._files[path] = file
            if len(self._files) > OPEN_FILES:  # one that is still being read closes after that
                self._files.popitem(last=False)
        return file


class Names:
    """Millions of file names in two arrays, which can be memory-mapped; a list would take GB."""

    def __init__(self, text: np.ndarray, ends: np.ndarray):
        self.text, self.ends = text, ends

    @staticmethod
    def of(names: list[str]) -> "Names":
        """From a list of strings."""
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return Names(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.text[start : int(self.ends[index])].tobytes())


def find_images(root: str) -> tuple[list[str], list[str]]:
    """Files below a local folder in the order of their names, relative to it.

    Returns:
        those named as images, or with no suffix at all; and the others. Hidden ones are in neither.
    """
    images: list[str] = []
    others: list[str] = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [n for n in folders if not n.startswith(".") and not _leads_back(folder, n)]
        inside = os.path.relpath(folder, root)
        for name in files:
            if name.startswith("."):
                continue
            named = IMAGE_NAME.search(name) or "." not in name
            (images if named else others).append(os.path.normpath(os.path.join(inside, name)))
    return sorted(images), sorted(others)


def _leads_back(folder: str, name: str) -> bool:
    """Whether a link in a folder is to the folder itself, or to one that holds it."""
    path = os.path.join(folder, name)
    if not os.path.islink(path):
        return False
    return f"{os.path.realpath(folder)}/".startswith(f"{os.path.realpath(path)}/")


def find_shards(path: str, split: str, kind: str) -> list[str]:
    """The shards of a split, in the order of their names.

    Args:
        path: a shard; a pattern of shards with `*`, `?`, `[…]` or `{000..127}`, in which `{split}`
            stands for the split; or a folder. In a folder, the shards that have the split in their
            name, or all of the folder ``path/split``, or, for the split `train`, all there are.
        split: such as `train`.
        kind: `tfrecord` or `tar`, which a folder's shards must have in their names.

    Raises:
        UserError: there is none; says where it looked.
    """
    path = path.replace("{split}", split)
    if re.search(r"[*?\[{]", os.path.basename(path)):
        found = sorted(itertools.chain(*(map(_glob, _expand_braces(path)))))
        if not found:
            raise UserError(f"no file matches {path}")
        return found
    if not _is_folder(path):
        if not _exists(path):
            raise UserError(f"{path} does not exist")
        return [path]
    inner = os.path.join(path, split)
    folder = inner if _is_folder(inner) else path
    like = r"tfrecord|-\d{5}-of-\d{5}" if kind == "tfrecord" else r"\.tar$"
    names = sorted(name for name in _list(folder) if re.search(like, name.lower()))
    named = [n for n in names if re.search(rf"(^|[^a-z]){re.escape(split)}([^a-z]|$)", n)]
    chosen = names if folder == inner or (not named and split == "train") else named
    if not chosen:
        there = ", ".join(names[:6]) or "no shard"
        raise UserError(f"no {kind} shard of the split {split!r} in {folder}, which has {there}")
    return [os.path.join(folder, name) for name in chosen]


def _expand_braces(pattern: str) -> Iterator[str]:
    """`a-{00..02}` as a-00, a-01, a-02, as shells and WebDataset do."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        yield pattern
        return
    low, high = match.groups()
    for number in range(int(low), int(high) + 1):
        middle = str(number).zfill(len(low))
        yield from _expand_braces(pattern[: match.start()] + middle + pattern[match.end() :])


def _glob(pattern: str) -> list[str]:
    return tensorflow().io.gfile.glob(pattern) if is_remote(pattern) else glob.glob(pattern)


def _is_folder(path: str) -> bool:
    return tensorflow().io.gfile.isdir(path) if is_remote(path) else Path(path).is_dir()


def _exists(path: str) -> bool:
    return tensorflow().io.gfile.exists(path) if is_remote(path) else Path(path).exists()


def _list(path: str) -> list[str]:
    return tensorflow().io.gfile.listdir(path) if is_remote(path) else os.listdir(path)
