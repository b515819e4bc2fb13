"""Wrappers of stdout and stderr that report a failed write instead of raising an error.

A write fails, for example, if the program that reads a pipe has exited, or if the disk is full.
"""

import contextlib
import errno
import os
import sys
from typing import Any, TextIO, cast


class Forgiving:
    """A text stream that ignores failed writes.

    Text that cannot be written is lost. Only the first failed write is reported on stderr.

    Args:
        stream: The text stream to write to, such as ``sys.stdout``.
        name: The name of the stream in the warning about a failed write, such as ``stdout``.
    """

    def __init__(self, stream: Any, name: str):
        self._stream, self._name = stream, name
        self._failed = self._gone = False

    def write(self, text: str) -> int:
        """Write a text and return its length, even if the write fails."""
        if not self._gone:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:  # ValueError: the stream is closed.
                self._report(error)
        return len(text)

    def flush(self) -> None:
        """Flush the buffered text."""
        if not self._gone:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._report(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _report(self, error: Exception) -> None:
        # A disk may regain space, but a closed stream or an exited consumer does not recover.
        self._gone = getattr(error, "errno", None) != errno.ENOSPC
        if not self._failed:
            self._failed = True
            reason = getattr(error, "strerror", None) or error
            line = f"WARNING: {self._name} cannot be written: {reason}; the command continues\n"
            with contextlib.suppress(OSError):
                os.write(2, line.encode())


def forgive_streams() -> None:
    """Replace ``sys.stdout`` and ``sys.stderr`` by streams that ignore failed writes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # It was closed before the program started.
            stream = open(os.devnull, "w")  # noqa: SIM115, open until exit
        if not isinstance(stream, Forgiving):
            setattr(sys, name, cast(TextIO, Forgiving(stream, name)))


def give_up_buffers() -> None:
    """Discard output that cannot be flushed, to prevent Python from exiting with code 120."""
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream_of(stream).flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def stream_of(stream: Any) -> Any:
    """Return the stream that a `Forgiving` wraps; return any other stream unchanged."""
    return stream._stream if isinstance(stream, Forgiving) else stream
