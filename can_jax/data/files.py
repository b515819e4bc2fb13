"""Files by name: which ones belong to a data set, and bytes from the middle of them.

Local files are read with the operating system alone; names such as `gs://…` go through
TensorFlow's file systems.
"""

import collections
import os
import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from can_jax.errors import UserError
from can_jax.tf import tensorflow

IMAGES = r"jpe?g|jpe|jfif|a?png|gif|bmp|dib|webp|tiff?|avif|mpo|jp2|ico|p[bgpn]m"
IMAGE_NAME = re.compile(rf"\.({IMAGES})$", re.IGNORECASE)
# First bytes of the same formats.
IMAGE_START = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{4}\0\0\0\0|RIFF.{4}WEBP|II[*+]\0|MM\0[*+]"
    rb"|.{4}ftyp(avif|avis|mif1|heic|heix|jp2)|\0\0\0\x0cjP  |\xffO\xffQ|\0\0\x01\0|P[1-7][\s#]",
    re.DOTALL,
)
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
    """Return the files below a local folder in the order of their names, relative to it.

    Returns:
        Images, by name or, without a suffix, by their first bytes; and the others. Hidden ones are
        in neither.
    """
    images: list[str] = []
    others: list[str] = []
    for folder, files in walk(root):
        inside = os.path.relpath(folder, root)
        for name in files:
            named = bool(IMAGE_NAME.search(name))
            if not named and "." not in name:
                named = starts_as_image(os.path.join(folder, name))
            (images if named else others).append(os.path.normpath(os.path.join(inside, name)))
    return sorted(images), sorted(others)


def starts_as_image(path: str) -> bool:
    """Return whether the first bytes of a file are those of an image format."""
    try:
        if not is_remote(path) and not os.path.isfile(path):  # a pipe would wait for a writer
            return False
        with open_file(path) as file:
            return bool(IMAGE_START.match(file.read(64)))
    except OSError:
        return False


def walk(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder below a root, and the root, with the names of its visible files."""
    if is_remote(root):
        for folder, _, files in tensorflow().io.gfile.walk(root):
            yield folder, files
        return
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [n for n in folders if not n.startswith(".") and not _leads_back(folder, n)]
        yield folder, [name for name in files if not name.startswith(".")]


def _leads_back(folder: str, name: str) -> bool:
    """Whether a link in a folder is to the folder itself, or to one that holds it."""
    path = os.path.join(folder, name)
    if not os.path.islink(path):
        return False
    return f"{os.path.realpath(folder)}/".startswith(f"{os.path.realpath(path)}/")


def is_folder(path: str) -> bool:
    """Return whether a path is a folder."""
    return _remote(path, "isdir") if is_remote(path) else os.path.isdir(path)


def exists(path: str) -> bool:
    """Return whether a path is there."""
    return _remote(path, "exists") if is_remote(path) else os.path.exists(path)


def listed(path: str) -> list[str]:
    """Return the names in a folder."""
    names = _remote(path, "listdir") if is_remote(path) else os.listdir(path)
    return [name.rstrip("/") for name in names]


def _remote(path: str, call: str) -> Any:
    """Call TensorFlow's file system.

    Raises:
        UserError: TensorFlow has no such file system.
    """
    tf = tensorflow()
    try:
        return getattr(tf.io.gfile, call)(path)
    except tf.errors.UnimplementedError as error:
        scheme = path.split("://", 1)[0]
        raise UserError(
            f"{path}: {scheme}:// cannot be read here; mount the store, or copy its files"
        ) from error
