"""Bytes of files, local or remote, with errors of a moment tried again.

Local files are read with the operating system alone; names such as `gs://…` go through
TensorFlow's file systems.
"""

import collections
import errno
import io
import os
import resource
import stat
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from absl import logging

from can_jax.data.storage.splits import shown
from can_jax.utils.errors import UserError, one_line, reason_of
from can_jax.utils.tensorflow import tensorflow

Result = TypeVar("Result")
LARGEST = 2**28  # bytes of an encoded image, or of another part of a file that is read at once
BLOCK = 2**18  # bytes that are read ahead of a stream
OPEN_FILES = 256  # kept open at once, or fewer where a process may not open as many
SHARE = 4  # of the descriptors that a process may have: the part that is kept open
WAITS = (0.1, 0.5, 2.0, 8.0, 20.0)  # seconds before a read is tried again
SAID = 2.0  # seconds of such a wait from which on it is logged
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
            if isinstance(error, OSError) and error.errno in FULL:
                OpenFiles.release()
            if passes(error) and wait is not None:
                if wait >= SAID:
                    logging.warning("%s; trying again in %.0f s", shown(one_line(error)), wait)
                time.sleep(wait)
                continue
            if isinstance(error, OSError) and error.errno in FULL:
                raise UserError(
                    f"{error.filename or 'a file'} cannot be opened: this process has as many open "
                    "files as it may; raise the limit (ulimit -n)"
                ) from error
            raise
    raise AssertionError


def passes(error: Exception) -> bool:
    """Return whether another try can mend an error."""
    if isinstance(error, OSError):
        return error.errno in TRANSIENT
    return type(error).__name__ in REMOTE_TRANSIENT


def of_storage(error: Exception) -> bool:
    """Return whether an error is of the file system, and not of what a file holds."""
    if isinstance(error, OSError):
        return error.errno is not None  # gzip and bz2 raise it without a number
    return isinstance(error, tensorflow().errors.OpError)


def unreadable(where: str, error: Exception) -> UserError:
    """Return the error that stops a run whose data cannot be read.

    Args:
        where: The file, and the place in it.
        error: Of the last try.
    """
    reason = reason_of(error)
    return UserError(
        f"{shown(where)} cannot be read: {shown(reason)}. Nothing takes its place: the same "
        "command resumes once it can be read"
    )


def stop_if_storage_fails(where: str, error: Exception) -> None:
    """Raise the error that stops a run, if the storage failed and not the content.

    Args:
        where: The file, and the place in it.
        error: Of the last try.

    Raises:
        UserError: The storage failed.
    """
    if passes(error):
        raise unreadable(where, error) from error


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
        self._path, self._gfile = path, None
        patiently(self._open)

    def _open(self) -> None:
        if is_remote(self._path):
            gfile = tensorflow().io.gfile
            self.size = int(gfile.stat(self._path).length)
            self._gfile, self._lock = gfile.GFile(self._path, "rb"), threading.Lock()
        else:
            demand_regular(self._path)
            self._descriptor = os.open(self._path, os.O_RDONLY)
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
        if self._gfile is not None:
            with self._lock:
                self._gfile.seek(offset)
                return self._gfile.read(length)
        parts: list[bytes] = []
        # Some network file systems return less than is there.
        while length and (part := self._part(offset, length)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def _part(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        with open(self._path, "rb", buffering=0) as file:  # the server has it under a new handle
            file.seek(offset)
            return file.read(length) or b""

    _close = staticmethod(os.close)  # at the exit of Python, `os` may be gone before a file is

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self._close(self._descriptor)


class _Raw(io.RawIOBase):
    """A file as Python's streams want it, with reads that are tried again."""

    def __init__(self, path: str):
        self._file, self._at = RandomFile(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(self._at, min(len(buffer), BLOCK))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def open_file(path: str) -> io.BufferedReader:
    """Return a file to be read from its start on.

    Raises:
        OSError, tf.errors.OpError: As of `RandomFile`; reading raises them too.
    """
    return io.BufferedReader(_Raw(path), BLOCK)


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
