"""Progress messages for long operations, such as compilation.

A message appears when an operation has lasted for `FIRST_SECONDS`. The message shows the name of
the operation, the elapsed seconds, and the seconds that the operation took the last time. Durations
of at least `USUAL_FROM` seconds are stored in the user's cache. On a terminal, the progress line is
rewritten at each update. In a file or pipe, elapsed times are appended to the progress line. If
operations are nested, only the innermost that has lasted for `FIRST_SECONDS` prints its progress.
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from can_jax.utils.files import replace_text, user_cache

FIRST_SECONDS = 1.0
PERIOD = 2.5  # seconds between two updates
TICK = 0.1  # seconds between two checks of whether an update is due
USUAL_FROM = 3.0  # seconds; shorter operations are not recorded
FILE = "durations.json"
LINE = 100  # characters after which a growing line is continued on the next

_output = threading.RLock()
_open: "Phase | None" = None  # the operation whose line is not ended
_active: list["Phase"] = []  # the operations in progress, the innermost last
_last_sign = 0.0  # the `time.perf_counter()` of the last progress update or other output


class Phase:
    """A long operation whose progress a background thread prints.

    Args:
        name: The name of the operation, such as ``compiling the train step``.
        usual: The seconds that the operation took the last time; None if unknown.
    """

    quiet = False  # set by `--quiet`

    def __init__(self, name: str, usual: float | None):
        self._name, self._usual = name, usual
        self._started, self._width, self._written = time.perf_counter(), 0, False
        self._done = threading.Event()
        self._detail = ""

    def start(self) -> None:
        """Start the thread that prints the progress."""
        with _output:
            _active.append(self)
        threading.Thread(target=self._live, daemon=True).start()

    @property
    def seconds(self) -> float:
        """The seconds since the operation began."""
        return time.perf_counter() - self._started

    def detail(self, text: str) -> None:
        """Set a text to print before the elapsed time, such as ``2,000 of 9,000 images``."""
        self._detail = text

    def end(self) -> float:
        """Stop printing, end the line, and return the seconds that the operation took."""
        self._done.set()
        seconds = self.seconds
        with _output:
            if self in _active:
                _active.remove(self)
            self.end_line(f"done in {seconds:.0f}s" if self._written else "")
        return seconds

    def end_line(self, text: str = "") -> None:
        """End the unfinished progress line, if it belongs to this operation.

        Args:
            text: The last words of the line, such as ``done in 5s``.
        """
        global _open, _last_sign
        if _open is not self:
            return
        _open, _last_sign = None, time.perf_counter()
        if sys.stdout.isatty():
            self._write(f"\r\x1b[K{self._name}: {text}\n" if text else "\r\x1b[K")
        else:
            self._write(f" {text}\n" if text else "\n")
        self._width = 0

    def _live(self) -> None:
        while not self._done.wait(TICK):
            with _output:
                if not self._done.is_set() and self._is_due():
                    self._sign()

    def _is_due(self) -> bool:
        """Return whether a progress update is due.

        The first update is due `FIRST_SECONDS` after the start of the operation. A later update is
        due if nothing was printed for `PERIOD` seconds. No update is due during a nested operation
        that has lasted for `FIRST_SECONDS`.
        """
        lasting = [phase for phase in _active if phase.seconds >= FIRST_SECONDS]
        if not lasting or lasting[-1] is not self:
            return False
        return not self._written or time.perf_counter() - _last_sign >= PERIOD

    def _sign(self) -> None:
        """Print the elapsed time."""
        global _open, _last_sign
        if _open is not None and _open is not self:
            _open.end_line()
        seconds = f"{self.seconds:.0f}s"
        if self._detail:
            seconds = f"{self._detail}, {seconds}"
        usually = f" (usually {self._usual:.0f}s)" if self._usual else ""
        if sys.stdout.isatty():
            text = f"\r\x1b[K{self._name}{usually}: {seconds}"
        elif _open is self and self._width < LINE:
            text = f" {seconds}"
        else:
            text = ("\n" if _open is self else "") + f"{self._name}{usually}: {seconds}"
            self._width = 0
        _open, self._written, _last_sign = self, True, time.perf_counter()
        self._width += len(text)
        self._write(text)

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the reader is gone
            sys.stdout.write(text)
            sys.stdout.flush()


def end_line() -> None:
    """End an unfinished progress line. Call this function before printing anything else."""
    global _last_sign
    with _output:
        _last_sign = time.perf_counter()  # the other output delays the next update, too
        if _open is not None:
            _open.end_line()


@contextlib.contextmanager
def phase(name: str, kind: str = "") -> Iterator[Phase]:
    """Print the progress of the operation in this context, in the main process only.

    Args:
        name: The name of the operation in the message, such as ``compiling the train step``.
        kind: A text, such as the name of the model, that distinguishes the stored durations of
            operations with the same name.
    """
    key = f"{name} {kind}".strip()
    shown = Phase(name, _usual(key))
    main = not jax.distributed.is_initialized() or jax.process_index() == 0
    if main and not Phase.quiet:
        shown.start()
    finished = False
    try:
        yield shown
        finished = True
    finally:
        seconds = shown.end()
        if main and finished and seconds >= USUAL_FROM:
            _record(key, seconds)


@contextlib.contextmanager
def apart(json: bool) -> Iterator[None]:
    """Redirect stdout to stderr in this context if ``json`` is true, to reserve stdout for JSON."""
    with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
        yield


def _durations() -> dict[str, Any]:
    cache = user_cache()
    try:
        values = json.loads((cache / FILE).read_text()) if cache else {}
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _usual(key: str) -> float | None:
    value = _durations().get(key)
    return float(value) if isinstance(value, int | float) else None


def _record(key: str, seconds: float) -> None:
    """Store the duration of an operation in the user's cache; ignore a failed write."""
    cache = user_cache()
    if cache is None:
        return
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        replace_text(cache / FILE, json.dumps(_durations() | {key: round(seconds, 1)}))
