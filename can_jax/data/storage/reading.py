"""Reading of local and remote files, with retries after transient errors.

Local files are read by the operating system alone; names such as `gs://…` go through TensorFlow's
file systems.
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
BLOCK = 2**18  # bytes of the read-ahead buffer of a stream
OPEN_FILES = 256  # files kept open at once; fewer if the process limit is low
SHARE = 4  # at most 1 / SHARE of the process's file descriptors are kept open
WAITS = (0.1, 0.5, 2.0, 8.0, 20.0)  # seconds to wait before each retry
SAID = 2.0  # seconds of wait from which a retry is logged
# Transient errors: of a network or a remote store, or because all descriptors are in use.
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
    """Return whether a path is a URL, which TensorFlow's file systems handle."""
    return "://" in path


def patiently(call: Callable[[], Result]) -> Result:
    """Return the result of a call, retried after transient errors. Blocks for up to 31 seconds of
    waits.

    Raises:
        UserError: The process has no free file descriptor.
        OSError, tf.errors.OpError: The error is permanent, or persisted through all retries.
    """
    for wait in (*WAITS, None):
        try:
            return call()
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL:
                OpenFiles.release()
            if passes(error) and wait is not None:
                if wait >= SAID:
                    logging.warning("%s; retrying in %.0f s", shown(one_line(error)), wait)
                time.sleep(wait)
                continue
            if isinstance(error, OSError) and error.errno in FULL:
                raise UserError(
                    f"{error.filename or 'a file'} cannot be opened: this process has reached its "
                    "limit of open files; raise it (ulimit -n)"
                ) from error
            raise
    raise AssertionError


def passes(error: Exception) -> bool:
    """Return whether an error is transient, so that a retry can succeed."""
    if isinstance(error, OSError):
        return error.errno in TRANSIENT
    return type(error).__name__ in REMOTE_TRANSIENT


def of_storage(error: Exception) -> bool:
    """Return whether an error comes from the file system, and not from the content of a file."""
    if isinstance(error, OSError):
        return error.errno is not None  # gzip and bz2 raise OSError without errno
    return isinstance(error, tensorflow().errors.OpError)


def unreadable(where: str, error: Exception) -> UserError:
    """Return the error that stops a run whose data cannot be read.

    Args:
        where: The file, and the location in it.
        error: The error of the last try.
    """
    reason = reason_of(error)
    return UserError(
        f"{shown(where)} cannot be read: {shown(reason)}. No other image replaces it: the same "
        "command resumes once it can be read"
    )


def stop_if_storage_fails(where: str, error: Exception) -> None:
    """Raise the error that stops a run, if the storage failed and not the content.

    Args:
        where: The file, and the location in it.
        error: The error of the last try.

    Raises:
        UserError: The storage failed.
    """
    if passes(error):
        raise unreadable(where, error) from error


def demand_regular(path: str) -> None:
    """Reject a file that is not regular, such as a FIFO, without opening it, which could block
    forever.

    Raises:
        OSError: The file is not regular, or does not exist.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)


class RandomFile:
    """A file with random access, shared by many threads.

    Args:
        path: The path or URL of the file.

    Attributes:
        size: The size of the file in bytes.
    """

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
        """Return bytes from an offset on; fewer at the end of the file.

        Args:
            offset: The offset of the first byte.
            length: The number of bytes; -1 for all up to the end.

        Raises:
            ValueError: The bytes are more than `LARGEST`, or the offset is negative.
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
        # Some network file systems return fewer bytes than requested before the end.
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
        with open(
            self._path, "rb", buffering=0
        ) as file:  # reopening gets a valid handle from the server
            file.seek(offset)
            return file.read(length) or b""

    _close = staticmethod(os.close)  # at exit, Python may clear `os` before it deletes a file

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self._close(self._descriptor)


class _Raw(io.RawIOBase):
    """A raw stream over a `RandomFile`, whose reads are retried."""

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
    """Open a file as a buffered stream, whose reads are retried.

    Raises:
        OSError, tf.errors.OpError: The file cannot be opened; reading it raises them too.
    """
    return io.BufferedReader(_Raw(path), BLOCK)


class OpenFiles:
    """A cache of open files; all instances together respect the file limit of the process."""

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
            closing = []  # a file in use closes when its reader releases it
            while sum(len(files._files) for files in self._all) > open_limit():
                fullest = self if len(self._files) > 1 else max(self._all, key=OpenFiles._count)
                closing.append(fullest._files.popitem(last=False))
        del closing
        return file

    def _count(self) -> int:
        return len(self._files)

    @classmethod
    def release(cls) -> None:
        """Drop all cached files of the process; each closes when its last reader releases it."""
        with cls._lock:
            closing = [files._files for files in cls._all]
            for files in cls._all:
                files._files = collections.OrderedDict()
        del closing


def open_limit() -> int:
    """Return the number of files to keep open at most."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_FILES if soft == resource.RLIM_INFINITY else max(1, min(OPEN_FILES, soft // SHARE))
