"""Files by name: which ones belong to a data set, and bytes from the middle of them.

Local files are read with the operating system alone; names such as `gs://…` go through
TensorFlow's file systems.
"""

import collections
import errno
import os
import re
import resource
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import numpy as np

from can_jax.data.walk import walk_local
from can_jax.errors import UserError
from can_jax.tf import tensorflow

IMAGES = r"jpe?g|jpe|jfif|a?png|gif|bmp|dib|webp|tiff?|avif|mpo|jp2|ico|p[bgpn]m"
Result = TypeVar("Result")
IMAGE_NAME = re.compile(rf"\.({IMAGES})$", re.IGNORECASE)
# First bytes of the same formats.
IMAGE_START = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{4}\0\0\0\0|RIFF.{4}WEBP|II[*+]\0|MM\0[*+]"
    rb"|.{4}ftyp(avif|avis|mif1|heic|heix|jp2)|\0\0\0\x0cjP  |\xffO\xffQ|\0\0\x01\0|P[1-7][\s#]",
    re.DOTALL,
)
LARGEST = 2**28  # bytes of an encoded image, or of another part of a file that is read at once
OPEN_FILES = 256  # kept open at once, or fewer where a process may not open as many
SHARE = 4  # of the descriptors that a process may have: the part that is kept open
WAITS = (0.1, 0.5, 2.0)  # seconds before a read is tried again
# Errors that another try can mend: of a network or a store, and of descriptors that are in use.
FULL = (errno.EMFILE, errno.ENFILE)
TRANSIENT = (
    *FULL, errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT,
    errno.ENOMEM, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EHOSTUNREACH,
    errno.ENETUNREACH, errno.ENETDOWN, errno.ENOTCONN, errno.EPIPE,
)  # fmt: skip
REMOTE_TRANSIENT = (
    "AbortedError", "DeadlineExceededError", "InternalError", "ResourceExhaustedError",
    "UnavailableError", "UnknownError",
)  # fmt: skip


def is_remote(path: str) -> bool:
    """Whether a path names a file system of TensorFlow's."""
    return "://" in path


def patiently(call: Callable[[], Result]) -> Result:
    """Return what a call returns; after an error that can pass it is tried again.

    Raises:
        UserError: The process may not open more files.
        OSError, tf.errors.OpError: It failed every time, or with an error that stays.
    """
    for wait in (*WAITS, None):
        try:
            return call()
        except Exception as error:
            passing = type(error).__name__ in REMOTE_TRANSIENT
            if isinstance(error, OSError):
                passing = error.errno in TRANSIENT
            if isinstance(error, OSError) and error.errno in FULL:
                OpenFiles.release()
            if passing and wait is not None:
                time.sleep(wait)
                continue
            if isinstance(error, OSError) and error.errno in FULL:
                raise UserError(
                    f"{error.filename or 'a file'} cannot be opened: this process has as many open "
                    "files as it may; raise the limit (ulimit -n)"
                ) from error
            raise
    raise AssertionError


def size_of(path: str) -> int:
    """Return the bytes of a file, which need not be readable."""
    if is_remote(path):
        return int(patiently(lambda: tensorflow().io.gfile.stat(path)).length)
    return os.stat(path).st_size


def demand_regular(path: str) -> None:
    """Refuse what is no regular file, such as a FIFO, without opening it: that could wait forever.

    Raises:
        OSError: It is none, or is not there.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)


class RandomFile:
    """A file that is read at any place, by many threads at once."""

    def __init__(self, path: str):
        self._gfile: Any = None
        patiently(lambda: self._open(path))

    def _open(self, path: str) -> None:
        if is_remote(path):
            gfile = tensorflow().io.gfile
            self.size = int(gfile.stat(path).length)
            self._gfile, self._lock = gfile.GFile(path, "rb"), threading.Lock()
        else:
            demand_regular(path)
            self._descriptor = os.open(path, os.O_RDONLY)
            self.size = os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes from an offset on, fewer where the file ends; all for a length of -1.

        Raises:
            ValueError: They are more than `LARGEST`, or begin nowhere in the file.
        """
        if offset < 0:
            raise ValueError(f"byte {offset} is in no file")
        rest = max(0, self.size - offset)
        length = rest if length < 0 else min(length, rest)
        if length > LARGEST:
            raise ValueError(f"{length} bytes are more than the {LARGEST} of an image")
        return patiently(lambda: self._read(offset, length))

    def _read(self, offset: int, length: int) -> bytes:
        if self._gfile is None:
            return os.pread(self._descriptor, length, offset)
        with self._lock:
            self._gfile.seek(offset)
            return self._gfile.read(length)

    _close = staticmethod(os.close)  # at the exit of Python, `os` may be gone before a file is

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self._close(self._descriptor)


def open_file(path: str) -> Any:
    """A file to be read from its start on."""
    if is_remote(path):
        return tensorflow().io.gfile.GFile(path, "rb")
    demand_regular(path)
    return patiently(lambda: open(path, "rb"))


class OpenFiles:
    """The files used last, kept open: all of these together fit the limit of the process."""

    _all: ClassVar["weakref.WeakSet[OpenFiles]"] = weakref.WeakSet()
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._files: collections.OrderedDict[str, RandomFile] = collections.OrderedDict()
        with self._lock:
            self._all.add(self)

    def __getitem__(self, path: str) -> RandomFile:
        with self._lock:
            if file := self._files.get(path):
                self._files.move_to_end(path)
                return file
        file = RandomFile(path)
        with self._lock:
            self._files[path] = file
            closing = []  # one that is still being read closes after that
            while sum(len(files._files) for files in self._all) > open_limit():
                fullest = self if len(self._files) > 1 else max(self._all, key=OpenFiles._count)
                closing.append(fullest._files.popitem(last=False))
        del closing
        return file

    def _count(self) -> int:
        return len(self._files)

    @classmethod
    def release(cls) -> None:
        """Close what is kept open, as soon as nobody reads it."""
        with cls._lock:
            closing = [files._files for files in cls._all]
            for files in cls._all:
                files._files = collections.OrderedDict()
        del closing


def open_limit() -> int:
    """Return how many files to keep open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_FILES if soft == resource.RLIM_INFINITY else max(1, min(OPEN_FILES, soft // SHARE))


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
    yield from walk_local(root)


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
