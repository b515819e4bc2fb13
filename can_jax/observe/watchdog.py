"""Ends a run that has stopped moving, and shows where each of its threads was."""

import faulthandler
import os
import sys
import threading
import time

from can_jax.errors import EXIT_UNEXPECTED


class Watchdog:
    """Looks whether steps are finished.

    Args:
        seconds: without a step after which the program is ended; 0 is never.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
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
                faulthandler.dump_traceback(all_threads=True)
                print(
                    f"error: nothing has moved for {self._seconds:.0f} s after step {self._step} "
                    "(config.stuck_after_seconds): a host is gone or stuck, or its data is; above "
                    "is where each thread was. The same command goes on from what was saved",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(EXIT_UNEXPECTED)
