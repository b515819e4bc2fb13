"""A lock that admits one writer to a folder at a time. The lock works across hosts if their shared
file system supports locks."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging

LOCK = ".lock"  # an empty file that is never deleted; its lock ends with the locking process


@contextlib.contextmanager
def only_writer(folder: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Lock a folder exclusively within the context; block while another process holds the lock.

    If the file system does not support locks, a warning is logged and nothing is locked.

    Args:
        folder: The folder to lock, which must exist.
        wait: A callback that is called once, before blocking, if another process holds the lock.

    Raises:
        OSError: The lock file cannot be opened for writing.
    """
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(file, wait, folder)
        yield
    finally:
        os.close(file)


def _lock(file: int, wait: Callable[[], None], folder: Path) -> None:
    """Lock an open file; log a warning if its file system does not support locks."""
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:  # the file system does not support locks
        logging.warning(
            "%s cannot be locked: %s; until this command ends, run no other command that writes to "
            "this folder",
            folder,
            error.strerror,
        )
