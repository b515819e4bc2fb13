"""Readers of local and remote files, which retry after transient errors.

Local files are read through the operating system, and URLs through `can_jax.data.storage.remote`.
"""

import collections
import errno
import functools
import io
import os
import resource
import stat
import threading
import time
import weakref
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

from absl import logging

from can_jax.data.storage import remote
from can_jax.data.storage.remote import is_remote
from can_jax.data.storage.splits import shown
from can_jax.utils.errors import UserError, one_line, reason_of

Result = TypeVar("Result")
Key = TypeVar("Key", bound=Hashable)
LARGEST = 2**28  # the maximum bytes of one read, such as of an encoded image
BLOCK = 2**18  # bytes of the read-ahead buffer of a stream
REMOTE_BLOCK = 2**22  # bytes per request of a remote stream
REMOTE_AHEAD = 3  # requests of a remote stream in flight, in addition to the block being read
AHEAD_THREADS = 64
OPEN_FILES = 256  # files kept open at once; fewer if the process limit is low
SHARE = 4  # at most 1 / SHARE of the process's limit of open files is used
WAITS = (0.1, 0.5, 2.0, 8.0, 20.0)  # seconds to wait before each retry
LOGGED_WAIT = 2.0  # seconds; a retry after a shorter wait is not logged
FULL = (errno.EMFILE, errno.ENFILE)  # all file descriptors are in use
# Errors that a retry can resolve, mostly of a network or a remote store.
TRANSIENT = (
    *FULL, errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT,
    errno.ENOMEM, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EHOSTUNREACH,
    errno.ENETUNREACH, errno.ENETDOWN, errno.ENOTCONN, errno.EPIPE,
)  # fmt: skip


def patiently(call: Callable[[], Result]) -> Result:
    """Return the result of a call, which is repeated after transient errors.

    Blocking: the function sleeps for up to 31 seconds in total between the attempts.

    Raises:
        UserError: The limit of open files is still reached after all retries.
        Exception: The call raised an exception that is not transient, or that persists after all
            retries.
    """
    for wait in (*WAITS, None):
        try:
            return call()
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL:
                OpenFiles.release()
            if is_transient(error) and wait is not None:
                if wait >= LOGGED_WAIT:
                    logging.warning("%s; retrying in %.0f s", shown(one_line(error)), wait)
                time.sleep(wait)
                continue
            if isinstance(error, OSError) and error.errno in FULL:
                raise UserError(
                    f"{error.filename or 'a file'} cannot be opened: this process has reached its "
                    "limit of open files; raise the limit with `ulimit -n`"
                ) from error
            raise
    raise AssertionError


def is_transient(error: Exception) -> bool:
    """Return whether an error is transient, so that a retry can succeed."""
    return isinstance(error, OSError) and error.errno in TRANSIENT


def of_storage(error: Exception) -> bool:
    """Return whether an error came from the file system or object store, rather than from damaged
    content."""
    # For damaged content, gzip and bz2 raise OSError without errno.
    return isinstance(error, OSError) and error.errno is not None


def unreadable(where: str, error: Exception) -> UserError:
    """Return the error that ends a run whose data cannot be read.

    Args:
        where: The path of the file, optionally with the location of an example in the file, for the
            message.
        error: The error of the last attempt.
    """
    reason = reason_of(error)
    return UserError(
        f"{shown(where)} cannot be read: {shown(reason)}. Re-run the command once the "
        "file can be read"
    )


def stop_if_storage_fails(where: str, error: Exception) -> None:
    """Raise `UserError` if the `errno` of an error is in `TRANSIENT`. A transient error that is
    passed to this function has persisted through all retries.

    Args:
        where: The path of the file, optionally with the location of an example in the file, for the
            message.
        error: The error of the last attempt.

    Raises:
        UserError: The `errno` of the error is in `TRANSIENT`, as for an I/O error. For other
            errors, such as a missing file, nothing is raised.
    """
    if is_transient(error):
        raise unreadable(where, error) from error


def demand_regular(path: str) -> None:
    """Reject a file that is not a regular file, such as a FIFO, because opening it could block
    forever.

    Raises:
        OSError: The file is not regular, or does not exist.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)


class LocalFile:
    """A local file with random access, which many threads can share.

    Args:
        path: The local path of the file.

    Attributes:
        size: The size of the file in bytes.
    """

    def __init__(self, path: str):
        self._path = path
        patiently(self._open)

    def _open(self) -> None:
        demand_regular(self._path)
        self._descriptor = os.open(self._path, os.O_RDONLY)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the file; fewer than requested at the end of the file.

        Args:
            offset: The offset of the first byte, at least 0.
            length: The number of bytes; -1 for all bytes up to the end of the file.

        Raises:
            ValueError: The read would return more than `LARGEST` bytes, or the offset is negative.
            OSError: The bytes cannot be read, even after retries.
        """
        _check_offset(offset)
        rest = max(0, self.size - offset)
        length = rest if length < 0 else min(length, rest)
        _check_length(length)
        return patiently(lambda: self._read(offset, length))

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Read bytes of the file into a buffer, and return their number, which may be less than the
        size of the buffer.

        The call releases the GIL. This method takes less CPU time than ``read``, because it
        allocates no memory, does not complete short reads, and does not retry.

        Raises:
            OSError: The bytes cannot be read.
        """
        return os.preadv(self._descriptor, (buffer,), offset)

    def _read(self, offset: int, length: int) -> bytes:
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
        # Reopening gets a valid handle from the server.
        with open(self._path, "rb", buffering=0) as file:
            file.seek(offset)
            return file.read(length) or b""

    _close = staticmethod(os.close)  # at exit, Python may clear `os` before it deletes this object

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self._close(self._descriptor)


class RemoteFile:
    """A remote object with random access. Each read sends one ranged request, which is repeated
    after transient errors.

    Args:
        url: The URL of the object, such as `gs://bucket/train-0.tar`.
    """

    def __init__(self, url: str):
        self._url = url

    @functools.cached_property
    def size(self) -> int:
        """The size of the object in bytes; the first access to this property sends a request."""
        return patiently(lambda: remote.size(self._url))

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the object; see `LocalFile.read` for the arguments."""
        _check_offset(offset)
        _check_length(length)
        return patiently(lambda: remote.read_range(self._url, offset, length, LARGEST))


RandomFile = LocalFile | RemoteFile


def open_random(path: str) -> RandomFile:
    """Open a local path or a URL for random access.

    Raises:
        OSError: The local file cannot be opened. A missing remote object causes an error only when
            it is read.
    """
    return RemoteFile(path) if is_remote(path) else LocalFile(path)


def _check_offset(offset: int) -> None:
    if offset < 0:
        raise ValueError(f"the offset {offset} is negative")


def _check_length(length: int) -> None:
    if length > LARGEST:
        raise ValueError(f"{length} bytes exceed the limit of {LARGEST} bytes for one read")


class _Raw(io.RawIOBase):
    """An unbuffered, seekable stream over a local or remote file, which repeats reads after
    transient errors."""

    def __init__(self, path: str):
        self._file, self._at = open_random(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        end = self._file.size if whence == os.SEEK_END else 0
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: end}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        content = self._content(len(buffer))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def _content(self, most: int) -> bytes | memoryview:
        return self._file.read(self._at, min(most, BLOCK))


class _RemoteRaw(_Raw):
    """An unbuffered stream over a remote object. If reads are sequential, the stream requests the
    next blocks in advance."""

    def __init__(self, url: str):
        super().__init__(url)
        self._blocks: dict[int, Future[bytes]] = {}

    def _content(self, most: int) -> memoryview:
        index, start = divmod(self._at, REMOTE_BLOCK)
        sequential = index in self._blocks or index - 1 in self._blocks or not index
        last = index + REMOTE_AHEAD if sequential else index
        blocks = {number: self._blocks.get(number) for number in range(index, last + 1)}
        self._blocks = {n: block or self._request(n) for n, block in blocks.items()}
        return memoryview(self._blocks[index].result())[start : start + most]

    def _request(self, number: int) -> "Future[bytes]":
        return _read_ahead().submit(self._file.read, number * REMOTE_BLOCK, REMOTE_BLOCK)


@functools.cache
def _read_ahead() -> ThreadPoolExecutor:
    """Return the thread pool for read-ahead requests. All streams share this pool."""
    return ThreadPoolExecutor(AHEAD_THREADS, "read-ahead")


def open_file(path: str) -> io.BufferedReader:
    """Open a local path or a URL as a buffered stream, which repeats reads after transient errors.

    Raises:
        OSError: The local file cannot be opened. Reading from the stream can also raise OSError.
    """
    return io.BufferedReader(_RemoteRaw(path) if is_remote(path) else _Raw(path), BLOCK)


class OpenFiles:
    """A cache of open files by key. All instances together keep at most `open_limit` files
    open."""

    _all: ClassVar["weakref.WeakSet[OpenFiles]"] = weakref.WeakSet()
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._files: collections.OrderedDict[Hashable, RandomFile] = collections.OrderedDict()
        with self._lock:
            self._all.add(self)

    def get(self, key: Key, path_of: Callable[[Key], str]) -> RandomFile:
        """Return the file with a key, opened if necessary.

        Args:
            key: A key that identifies the file in this cache.
            path_of: A function that returns the path or URL of the file with a key.

        Raises:
            OSError: The file cannot be opened; see `open_random`.
        """
        with self._lock:
            if file := self._files.get(key):
                self._files.move_to_end(key)
                return file
        file = open_random(path_of(key))
        with self._lock:
            self._files[key] = file
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
        """Empty the caches of all instances. A file in use is closed when its last reader releases
        the file."""
        with cls._lock:
            closing = [files._files for files in cls._all]
            for files in cls._all:
                files._files = collections.OrderedDict()
        del closing


def open_limit() -> int:
    """Return the maximum number of files that all `OpenFiles` together keep open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_FILES if soft == resource.RLIM_INFINITY else max(1, min(OPEN_FILES, soft // SHARE))
