"""Standard streams that never end a run: their reader may be gone, or the disk below them full."""

import contextlib
import errno
import os
import sys
from typing import Any, TextIO, cast


class Forgiving:
    """A text stream on which writing cannot fail.

    A line that cannot be written is lost, and the first such loss is reported once.

    Args:
        stream: The stream to write to.
        name: What it is called in the report.
    """

    def __init__(self, stream: Any, name: str):
        self._stream, self._name = stream, name
        self._failed = self._gone = False

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        if not self._gone:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:  # ValueError: it is closed
                self._report(error)
        return len(text)

    def flush(self) -> None:
        """Write out what is buffered."""
        if not self._gone:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._report(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _report(self, error: Exception) -> None:
        # A disk may have room again; a reader or a closed stream does not come back.
        self._gone = getattr(error, "errno", None) != errno.ENOSPC
        if not self._failed:
            self._failed = True
            reason = getattr(error, "strerror", None) or error
            line = f"WARNING: {self._name} cannot be written: {reason}; the command continues\n"
            with contextlib.suppress(OSError):
                os.write(2, line.encode())


def forgive_streams() -> None:
    """Let nothing that is printed end this process, whatever its standard streams are."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed before the program started
            stream = open(os.devnull, "w")  # noqa: SIM115, until the process ends
        if not isinstance(stream, Forgiving):
            setattr(sys, name, cast(TextIO, Forgiving(stream, name)))


def give_up_buffers() -> None:
    """Drop what cannot be written at the end, on which Python would exit with code 120."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream_of(stream).flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def stream_of(stream: Any) -> Any:
    """Return the stream below a `Forgiving` one."""
    return stream._stream if isinstance(stream, Forgiving) else stream
