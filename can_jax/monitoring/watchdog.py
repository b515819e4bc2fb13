"""Ends a run that has stopped moving, and shows where each of its threads was."""

import contextlib
import threading
import time
from collections.abc import Iterator

from can_jax.distributed.abort import abort

LONG = 4  # times `config.stuck_after_seconds` is the limit of what grows with the data or the model


class Watchdog:
    """Looks whether steps are finished.

    Args:
        seconds: Without a step, after which the program is ended; 0 is never.
        during: What is done, for the message, if it is no step.
    """

    def __init__(self, seconds: float, during: str = ""):
        self._seconds, self._during = seconds, during
        self._step, self._at = 0, time.monotonic()
        self._done = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, daemon=True).start()

    def beat(self, step: int) -> None:
        """So many steps are done."""
        self._step, self._at = step, time.monotonic()

    def close(self) -> None:
        """Stop looking."""
        self._done.set()

    def _watch(self) -> None:
        period = min(self._seconds / 10, 10.0)
        woke = time.monotonic()
        while not self._done.wait(period):
            # Time in which the whole process was suspended does not count.
            now = time.monotonic()
            self._at += max(now - woke - 2 * period, 0.0)
            woke = now
            if time.monotonic() - self._at > self._seconds:
                abort(
                    f"nothing has moved for {self._seconds:.0f} s "
                    f"{self._during or f'after step {self._step}'} (config.stuck_after_seconds): a "
                    "host is gone or stuck, or its data is; above is where each thread was. The "
                    "same command resumes from the last checkpoint"
                )


@contextlib.contextmanager
def section(doing: str, seconds: float) -> Iterator[None]:
    """End the program if what is inside takes longer.

    Args:
        doing: What is inside, as in "while opening the data".
        seconds: Its limit; 0 for none.
    """
    watchdog = Watchdog(seconds, f"while {doing}")
    try:
        yield
    finally:
        watchdog.close()
