"""Messages during long operations, so that a command is never silent for long.

Each operation has a name, and prints how long it has taken and how long it usually takes. Its line
begins once the operation has lasted for `FIRST_SECONDS`. On a terminal it is rewritten, elsewhere
it grows. The usual length is that of the last time on this machine, from the user's cache. The
innermost of nested operations prints.
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
PERIOD = 2.5  # seconds between two signs of life
USUAL_FROM = 3.0  # seconds; shorter operations are not recorded
FILE = "durations.json"
LINE = 100  # characters after which a growing line is continued on the next

_output = threading.RLock()
_open: "Phase | None" = None  # the phase whose line is not ended
_active: list["Phase"] = []  # those under way, the innermost last


class Phase:
    """A long operation, which prints signs of life in a background thread.

    Args:
        name: What is being done, such as ``compiling the train step``.
        usual: The seconds that it usually takes; None if unknown.
    """

    quiet = False  # set by `--quiet`

    def __init__(self, name: str, usual: float | None):
        self._name, self._usual = name, usual
        self._started, self._width, self._written = time.perf_counter(), 0, False
        self._done = threading.Event()
        self._detail = ""

    def start(self) -> None:
        """Begin to print signs of life."""
        with _output:
            _active.append(self)
        threading.Thread(target=self._live, daemon=True).start()

    def detail(self, text: str) -> None:
        """Set a detail of the progress, such as ``2,000 of 9,000 images``."""
        self._detail = text

    def end(self) -> float:
        """End the line, and return the seconds that the operation took."""
        self._done.set()
        seconds = time.perf_counter() - self._started
        with _output:
            if self in _active:
                _active.remove(self)
            self.end_line(f"done in {seconds:.0f}s" if self._written else "")
        return seconds

    def end_line(self, text: str = "") -> None:
        """End the line that is begun, so that another message can be printed."""
        global _open
        if _open is not self:
            return
        _open = None
        if sys.stdout.isatty():
            self._write(f"\r\x1b[K{self._name}: {text}\n" if text else "\r\x1b[K")
        else:
            self._write(f" {text}\n" if text else "\n")
        self._width = 0

    def _live(self) -> None:
        if self._done.wait(FIRST_SECONDS):
            return
        while True:
            with _output:
                if self._done.is_set():
                    return
                self._sign()
            if self._done.wait(PERIOD):
                return

    def _sign(self) -> None:
        """Write a sign of life, unless an inner operation does."""
        global _open
        if _active and _active[-1] is not self:
            return
        if _open is not None and _open is not self:
            _open.end_line()
        seconds = f"{time.perf_counter() - self._started:.0f}s"
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
        _open, self._written = self, True
        self._width += len(text)
        self._write(text)

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the reader is gone
            sys.stdout.write(text)
            sys.stdout.flush()


def end_line() -> None:
    """End the line of an operation that is under way; call it before printing anything else."""
    with _output:
        if _open is not None:
            _open.end_line()


@contextlib.contextmanager
def phase(name: str, kind: str = "") -> Iterator[Phase]:
    """Print signs of life while the body runs, in the main process only.

    Args:
        name: What is being done, for people.
        kind: What the usual length depends on besides the name, such as the model.
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
    """Send what the body prints to stderr if ``json``, so that stdout holds nothing but JSON."""
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
    """Store the length of an operation for the next time, as far as the cache can be written."""
    cache = user_cache()
    if cache is None:
        return
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        replace_text(cache / FILE, json.dumps(_durations() | {key: round(seconds, 1)}))
