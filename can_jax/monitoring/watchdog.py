"""A watchdog that aborts a run without progress, after printing the stack of each thread."""

import contextlib
import threading
import time
from collections.abc import Iterator

from can_jax.distributed.abort import abort, dump_stacks_after
from can_jax.utils.progress import phase

# The limit of operations that grow with the data or the model, times `config.stuck_after_seconds`.
LONG = 4
MARGIN_SECONDS = 60.0  # beyond the limit, until the timer in C prints the stacks


class Watchdog:
    """A background thread that aborts the program if no step completes within a time limit.

    The thread regularly resets a timer that is implemented in C. While a C extension holds the GIL,
    the thread cannot run, and the timer prints the stacks instead.

    Args:
        seconds: The maximum time between steps in seconds; 0 disables the watchdog.
        during: The operation that the message names instead of a step, such as "while opening the
            data".
    """

    def __init__(self, seconds: float, during: str = ""):
        self._seconds, self._during = seconds, during
        self._step, self._at = 0, time.monotonic()
        self._done = threading.Event()
        if seconds:
            # Not by the thread, which may not get the interpreter before it is held.
            dump_stacks_after(seconds + MARGIN_SECONDS)
            threading.Thread(target=self._watch, daemon=True).start()

    def beat(self, step: int) -> None:
        """Record that a step has completed."""
        self._step, self._at = step, time.monotonic()

    def close(self) -> None:
        """Stop the watchdog."""
        self._done.set()

    def _watch(self) -> None:
        period = min(self._seconds / 10, 10.0)
        woke = time.monotonic()
        while not self._done.wait(period):
            dump_stacks_after(self._seconds + MARGIN_SECONDS)
            # Time during which the whole process was suspended does not count.
            now = time.monotonic()
            self._at += max(now - woke - 2 * period, 0.0)
            woke = now
            if time.monotonic() - self._at > self._seconds:
                abort(
                    f"no progress for {self._seconds:.0f} s "
                    f"{self._during or f'after step {self._step}'} (config.stuck_after_seconds); a "
                    "host or the input pipeline is probably hung. Thread stacks are above. Re-run "
                    "the command to resume from the last checkpoint"
                )
        dump_stacks_after(None)


@contextlib.contextmanager
def section(doing: str, seconds: float) -> Iterator[None]:
    """Print progress messages during an operation, and abort the program after a time limit.

    Args:
        doing: The operation that the messages name, such as "opening the data".
        seconds: The limit in seconds; 0 for no limit.
    """
    watchdog = Watchdog(seconds, f"while {doing}")
    try:
        with phase(doing):
            yield
    finally:
        watchdog.close()
