"""The file operations of the run-directory lease, for disks and for object-store buckets."""

import contextlib
import importlib.util
import os
import secrets
import time
from pathlib import Path
from typing import Protocol, runtime_checkable

import filelock
from absl import logging
from etils import epath

from can_jax.data.storage import remote
from can_jax.utils.errors import one_line
from can_jax.utils.files import BUCKETS, replacing

KERNEL_LOCK = ".lock"
SETTLE_SECONDS = 5.0  # until competing writes to a bucket without exclusive creation settle


@runtime_checkable
class Files(Protocol):
    """The interface of the file operations on one directory.

    All methods except `lock` and `unlock` raise `OSError` if the storage fails.
    """

    def read(self, name: str) -> str | None:
        """Return the text of a file, or None if the file does not exist."""
        ...

    def names(self) -> list[str]:
        """Return the names of all files in the directory."""
        ...

    def create(self, name: str, text: str) -> bool:
        """Create a file; return False if it already exists."""
        ...

    def update(self, name: str, text: str) -> bool:
        """Overwrite a file; return False if it does not exist."""
        ...

    def replace(self, name: str, text: str) -> None:
        """Atomically create or replace a file."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file; do nothing if it does not exist."""
        ...

    def lock(self) -> bool:
        """Take the kernel's file lock; return False if another process holds it.

        On a file system without file locks, return True. Without file locks, only the lease records
        determine the holder.
        """
        ...

    def unlock(self) -> None:
        """Release the kernel's file lock if this process holds it."""
        ...


class DiskFiles:
    """The file operations on a directory of a local or network file system.

    Args:
        folder: The path of the directory, which must exist.
    """

    def __init__(self, folder: str):
        self._folder = Path(folder)
        self._lock: filelock.BaseFileLock | None = None

    def read(self, name: str) -> str | None:
        """See `Files`.

        On NFS, the text is not stale, because opening a file revalidates it with the server.
        """
        try:
            return (self._folder / name).read_text(errors="replace")
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """See `Files`."""
        try:
            return os.listdir(self._folder)
        except FileNotFoundError:
            return []

    def create(self, name: str, text: str) -> bool:
        """See `Files`."""
        path = self._folder / name
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            _write(file, text)
        except OSError:  # the disk is full, for example
            path.unlink(missing_ok=True)
            raise
        return True

    def update(self, name: str, text: str) -> bool:
        """See `Files`.

        Overwriting the file in place needs no disk space and creates no file.
        """
        try:
            file = os.open(self._folder / name, os.O_WRONLY)
        except FileNotFoundError:
            return False
        _write(file, text)
        return True

    def replace(self, name: str, text: str) -> None:
        """See `Files`."""
        with replacing(self._folder / name, f".{secrets.token_hex(4)}.tmp") as temporary:
            self.create(temporary.name, text)

    def remove(self, name: str) -> None:
        """See `Files`."""
        (self._folder / name).unlink(missing_ok=True)

    def lock(self) -> bool:
        """See `Files`."""
        lock = filelock.FileLock(self._folder / KERNEL_LOCK, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            return False
        except (OSError, NotImplementedError) as error:
            logging.info("%s does not support file locks: %s", self._folder, one_line(error))
            return True
        self._lock = lock
        return True

    def unlock(self) -> None:
        """See `Files`. Unlocking also removes the lock file.

        A process that opened the lock file before its removal detects the removal, and creates a
        new lock file.
        """
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self.remove(KERNEL_LOCK)
            self._lock.release()
            self._lock = None


class BucketFiles:
    """The file operations on a folder of an object-store bucket, which has no file locks.

    Args:
        folder: The URL of the folder, such as ``gs://BUCKET/RUN``.
    """

    def __init__(self, folder: epath.Path):
        self._folder = folder

    def read(self, name: str) -> str | None:
        """See `Files`."""
        try:
            return (self._folder / name).read_text()
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """See `Files`."""
        try:
            return [path.name for path in self._folder.iterdir()]
        except FileNotFoundError:
            return []

    def create(self, name: str, text: str) -> bool:
        """See `Files`. With the library `obstore`, the object store creates the object atomically.

        Without `obstore`, if several processes create the file within `SETTLE_SECONDS`, only the
        last of them succeeds.
        """
        path = self._folder / name
        if creates_exclusively(str(path)):
            try:
                remote.write(str(path), text.encode(), mode="create")
            except FileExistsError:
                # A retried request can find the object that its first attempt created.
                return self.read(name) == text
            return True
        if self.read(name) is not None:
            return False
        path.write_text(text)
        time.sleep(SETTLE_SECONDS)
        return self.read(name) == text

    def update(self, name: str, text: str) -> bool:
        """See `Files`. If another process removes the object after the existence check, this
        method recreates the object."""
        if self.read(name) is None:
            return False
        (self._folder / name).write_text(text)
        return True

    def replace(self, name: str, text: str) -> None:
        """See `Files`."""
        (self._folder / name).write_text(text)

    def remove(self, name: str) -> None:
        """See `Files`."""
        with contextlib.suppress(FileNotFoundError):
            (self._folder / name).unlink()

    def lock(self) -> bool:
        """See `Files`."""
        return True

    def unlock(self) -> None:
        """See `Files`."""


def files_of(folder: epath.Path) -> Files:
    """Return the file operations for a path or a bucket URL."""
    return BucketFiles(folder) if "://" in str(folder) else DiskFiles(str(folder))


def creates_exclusively(url: str) -> bool:
    """Return whether a write to a URL can atomically create an object without replacing an existing
    object.

    Atomic creation requires a conditional write, which the library `obstore` supports. TensorFlow's
    file system first checks whether the object exists, and then writes. Another process can
    create the object between the check and the write.
    """
    scheme = url.partition("://")[0]
    return scheme in BUCKETS and importlib.util.find_spec("obstore") is not None


def _write(file: int, text: str) -> None:
    """Write text at the start of the file with descriptor ``file``, and close the file."""
    try:
        os.pwrite(file, text.encode(), 0)
    finally:
        os.close(file)  # NFS may report an error of the write only here
