"""A watchdog that prints the stacks of all threads and ends a command if steps stop completing."""

import contextlib
import threading
import time
from collections.abc import Iterator

from can_jax.distributed.abort import abort, dump_stacks_after, may_end_process, report
from can_jax.utils.progress import phase

# The factor of `config.stuck_after_seconds` for operations that grow with the data or the model.
LONG = 4
MARGIN_SECONDS = 60.0  # beyond the limit, until the timer in C prints the stacks


class Watchdog:
    """A background thread that aborts a command if no step completes within a time limit.

    In a command with one process, the thread regularly resets a timer that is implemented in C. If
    a C extension holds the GIL beyond the limit, the thread cannot run; the timer then prints the
    stacks.

    A single-process program other than a command, such as a notebook, is not aborted: the stacks
    and the message are printed once. Only commands use the timer: a process has only one such
    timer, and another program may already use it.

    Args:
        seconds: The maximum time between steps in seconds; 0 disables the watchdog.
        during: The operation that the message names instead of a step, such as "while opening the
            data".
    """

    def __init__(self, seconds: float, during: str = ""):
        self._seconds, self._during = seconds, during
        self._step, self._at = 0, time.monotonic()
        self._done = threading.Event()
        self._ends_process = may_end_process()
        if seconds:
            # Started here, since a C extension may hold the GIL before the thread first runs.
            self._reset_timer()
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
            self._reset_timer()
            # Time during which the whole process was suspended does not count.
            now = time.monotonic()
            self._at += max(now - woke - 2 * period, 0.0)
            woke = now
            if now - self._at > self._seconds:
                message = (
                    f"no progress for {self._seconds:.0f} s "
                    f"{self._during or f'after step {self._step}'}, a limit that "
                    "config.stuck_after_seconds sets; a host or the input pipeline is probably "
                    "hung. Thread stacks are above. "
                )
                if self._ends_process:
                    abort(f"{message}Re-run the command to resume from the last checkpoint")
                report(f"{message}Training keeps waiting; interrupt it to stop")
                return
        if self._ends_process:
            dump_stacks_after(None)

    def _reset_timer(self) -> None:
        """Reset the C timer that prints the stacks, if this process may use the timer."""
        if self._ends_process:
            dump_stacks_after(self._seconds + MARGIN_SECONDS)


@contextlib.contextmanager
def section(doing: str, seconds: float) -> Iterator[None]:
    """Print progress messages during an operation, and abort the command if the operation exceeds a
    time limit.

    A single-process program other than a command, such as a notebook, is not aborted; see
    `Watchdog`.

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
