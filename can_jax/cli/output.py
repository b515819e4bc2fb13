"""Standard streams whose failures never end a run.

The program that reads a stream may have exited, or the disk may be full.
"""

import contextlib
import errno
import os
import sys
from typing import Any, TextIO, cast


class Forgiving:
    """A text stream that never raises on writes.

    A line that cannot be written is lost, and the first such loss is reported once.

    Args:
        stream: The stream to write to.
        name: The name of the stream in the report.
    """

    def __init__(self, stream: Any, name: str):
        self._stream, self._name = stream, name
        self._failed = self._gone = False

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
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
    """Replace the standard streams, so that failed prints never end this process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # It was closed before the program started.
            stream = open(os.devnull, "w")  # noqa: SIM115, open until exit
        if not isinstance(stream, Forgiving):
            setattr(sys, name, cast(TextIO, Forgiving(stream, name)))


def give_up_buffers() -> None:
    """Discard output that cannot be flushed, because Python would exit with code 120 otherwise."""
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream_of(stream).flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def stream_of(stream: Any) -> Any:
    """Return the underlying stream of a `Forgiving` one, or the stream itself."""
    return stream._stream if isinstance(stream, Forgiving) else stream
