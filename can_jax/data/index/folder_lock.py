"""One writer of a folder at a time, on any number of hosts that share it."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging

LOCK = ".lock"  # an empty file, which stays: the lock on it ends with its process


@contextlib.contextmanager
def only_writer(folder: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Hold a folder; blocks while another process does.

    Args:
        folder: It must exist.
        wait: Called once if another process holds it.
    """
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(file, wait, folder)
        yield
    finally:
        os.close(file)


def _lock(file: int, wait: Callable[[], None], folder: Path) -> None:
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:  # a file system without locks
        logging.warning(
            "%s cannot be locked: %s; run one command at a time", folder, error.strerror
        )
