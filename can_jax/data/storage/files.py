"""File names, types and sizes of a data set, local or remote."""

import itertools
import os
import re
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int

from can_jax.data.storage.reading import is_remote, open_file, patiently, stop_if_storage_fails
from can_jax.data.storage.walk import walk_local
from can_jax.utils.errors import UserError
from can_jax.utils.tensorflow import tensorflow

IMAGES = r"jpe?g|jpe|jfif|a?png|gif|bmp|dib|webp|tiff?|avif|mpo|jp2|ico|p[bgpn]m"
IMAGE_NAME = re.compile(rf"\.({IMAGES})$", re.IGNORECASE)
# The first bytes of files in these formats.
IMAGE_START = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{4}\0\0\0\0|RIFF.{4}WEBP|II[*+]\0|MM\0[*+]"
    rb"|.{4}ftyp(avif|avis|mif1|heic|heix|jp2)|\0\0\0\x0cjP  |\xffO\xffQ|\0\0\x01\0|P[1-7][\s#]",
    re.DOTALL,
)
STAT_THREADS = 16
STAT_BLOCK = 256  # files whose sizes a thread looks up as one task


def size_of(path: str) -> int:
    """Return the size of a file in bytes, which need not be readable.

    Raises:
        UserError: The file system fails.
        OSError, tf.errors.OpError: The file does not exist, or its folder is not accessible.
    """
    try:
        if is_remote(path):
            return int(patiently(lambda: tensorflow().io.gfile.stat(path)).length)
        return patiently(lambda: os.stat(path)).st_size
    except Exception as error:  # remote file systems raise their own types
        stop_if_storage_fails(path, error)
        raise


def shard_sizes(paths: Sequence[str]) -> Int[np.ndarray, " files"]:
    """Return the size of each file in bytes. Threads hide the latency of a remote store.

    Raises:
        UserError, OSError, tf.errors.OpError: The errors of `size_of`.
    """
    with ThreadPoolExecutor(STAT_THREADS) as threads:
        return np.array(list(threads.map(size_of, paths)), np.int64)


def sizes_of(root: str, names: Sequence[str]) -> Int[np.ndarray, " files"]:
    """Return the size of each local file in bytes; -1 if it is not a regular file or does not
    exist.

    Args:
        root: The folder to which the names are relative.
        names: The names of the files.

    Raises:
        UserError: The file system fails.
    """

    def size(name: str) -> int:
        path = os.path.join(root, name)
        try:
            status = patiently(lambda: os.stat(path))
        except OSError as error:
            stop_if_storage_fails(path, error)
            return -1
        return status.st_size if stat.S_ISREG(status.st_mode) else -1

    with ThreadPoolExecutor(STAT_THREADS) as threads:  # a network file system has a long latency
        blocks = [names[i : i + STAT_BLOCK] for i in range(0, len(names), STAT_BLOCK)]
        sizes = threads.map(lambda block: [size(name) for name in block], blocks)
        return np.fromiter(itertools.chain.from_iterable(sizes), np.int64, len(names))


class Names:
    """Millions of file names in two arrays, which can be memory-mapped; a list would take
    gigabytes.

    Args:
        text: The concatenated names, uint8.
        ends: The index in ``text`` at which each name ends.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray):
        self.text, self.ends = text, ends

    @staticmethod
    def of(names: list[str]) -> "Names":
        """Return the names of a list of strings."""
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
    """Return the visible files below a local folder, sorted and relative to it.

    Returns:
        The images, which are identified by suffix or, without a suffix, by their first bytes; and
        the other files.
    """
    images: list[str] = []
    others: list[str] = []
    for folder, files in walk(root):
        inside = os.path.relpath(folder, root)
        for name in files:
            image = bool(IMAGE_NAME.search(name))
            if not image and "." not in name:
                image = starts_as_image(os.path.join(folder, name))
            (images if image else others).append(os.path.normpath(os.path.join(inside, name)))
    return sorted(images), sorted(others)


def starts_as_image(path: str) -> bool:
    """Return whether a file begins with the first bytes of an image format."""
    try:
        if not is_remote(path) and not os.path.isfile(
            path
        ):  # opening a pipe would block until a writer opens it
            return False
        with open_file(path) as file:
            return bool(IMAGE_START.match(file.read(64)))
    except OSError:
        return False


def walk(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the root and each folder below it, with the names of the visible files in it."""
    if is_remote(root):
        for folder, _, files in tensorflow().io.gfile.walk(root):
            yield folder, files
        return
    yield from walk_local(root)


def is_folder(path: str) -> bool:
    """Return whether a path is a folder."""
    return _remote(path, "isdir") if is_remote(path) else os.path.isdir(path)


def exists(path: str) -> bool:
    """Return whether a path exists."""
    return _remote(path, "exists") if is_remote(path) else os.path.exists(path)


def listed(path: str) -> list[str]:
    """Return the names in a folder."""
    names = _remote(path, "listdir") if is_remote(path) else os.listdir(path)
    return [name.rstrip("/") for name in names]


def _remote(path: str, call: str) -> Any:
    """Call a function of TensorFlow's file systems.

    Args:
        path: The path to pass to the function.
        call: The name of the function in `tf.io.gfile`.

    Raises:
        UserError: TensorFlow does not support the file system.
    """
    tf = tensorflow()
    try:
        return getattr(tf.io.gfile, call)(path)
    except tf.errors.UnimplementedError as error:
        scheme = path.split("://", 1)[0]
        raise UserError(
            f"{path}: {scheme}:// cannot be read here; mount the store, or copy its files"
        ) from error
