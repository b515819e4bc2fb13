"""The log file of a run: its console output and warnings, with timestamps."""

import collections
import logging as python_logging
import os
import sys
import threading
import time
from types import TracebackType

import jax
from absl import logging
from etils import epath

from can_jax.distributed.preemption import Stopped, handler
from can_jax.utils.errors import LostLock, Preempted, one_line, printable, reason_of

WAITING = 10_000  # the maximum number of lines that wait for the run directory or for disk space


class RunLog(python_logging.Handler):
    """A context manager that writes messages, warnings and the final error of a run to a file.

    Lines wait in memory until `open` sets the run directory. A line that cannot be written is
    retried with the next one. If more than `WAITING` lines wait, the oldest are dropped. Process 0
    writes ``log.txt``, process 1 ``log-1.txt``, and so on.
    """

    def __init__(self) -> None:
        super().__init__(python_logging.WARNING)
        self._path: epath.Path | None = None
        self._waiting: collections.deque[str] = collections.deque(maxlen=WAITING)
        self._before = ""  # the content of a bucket's object, which cannot be appended to
        self._writing, self._failed = threading.Lock(), False

    def __enter__(self) -> "RunLog":
        logging.get_absl_logger().addHandler(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        logging.get_absl_logger().removeHandler(self)
        if isinstance(error, LostLock):
            self._path = None  # the directory is another run's
        if isinstance(error, Stopped):
            self.say(f"{handler.cause}: there was nothing new to save")
        elif isinstance(error, Preempted):
            self.say(str(error))
        elif error is not None:
            self.say(f"error: {one_line(error)}")

    def open(self, workdir: epath.Path) -> None:
        """Write the pending and all later lines to the log file in a run directory."""
        process = jax.process_index()
        path = workdir / (f"log-{process}.txt" if process else "log.txt")
        if "://" in str(path) and path.exists():
            self._before = path.read_text()
        with self._writing:
            self._path = path
            self._write()

    def say(self, text: str) -> None:
        """Write each line of a text to the log file, preceded by the current time."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        with self._writing:
            self._waiting.extend(f"{moment} {printable(line)}\n" for line in text.splitlines())
            self._write()

    def emit(self, record: python_logging.LogRecord) -> None:
        """Write the message of a log record. `logging` calls this method for warnings and
        errors."""
        self.say(f"{record.levelname}: {record.getMessage()}")

    def _write(self) -> None:
        """Write the pending lines. The first `OSError` is printed, and later ones are ignored."""
        if self._path is None:
            return
        lines = "".join(self._waiting)
        try:
            if "://" in str(self._path):
                self._path.write_text(self._before + lines)
                self._before += lines
            else:
                _append(self._path, lines)
        except OSError as error:
            if not self._failed:
                self._failed = True
                reason = reason_of(error)
                print(f"WARNING: {self._path} cannot be written: {reason}", file=sys.stderr)
            return
        self._waiting.clear()


def _append(path: epath.Path, text: str) -> None:
    """Append a text to a local file. If the write fails, restore the file's previous length."""
    with open(path, "ab") as file:
        before = file.tell()
        try:
            file.write(text.encode(errors="backslashreplace"))
            file.flush()
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise
