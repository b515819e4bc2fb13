"""Suppression of errors that background threads log after a failed save, and a temporary handler of
the root logger.

`Checkpointer` already reports a failed save.
"""

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any


def silence_threads() -> Callable[[], None]:
    """Suppress the errors of abandoned checkpoint writes; return a function that undoes this.

    This function changes the level of the logger ``asyncio``, the warning filters and
    `sys.unraisablehook`. Commands do not undo these changes, since abandoned writes can log errors
    until the process exits.
    """
    asyncio_logger = logging.getLogger("asyncio")
    level, usual = asyncio_logger.level, sys.unraisablehook

    def hook(raised: Any) -> None:
        if str(raised.exc_value) != "Event loop is closed":  # an abandoned write
            usual(raised)

    asyncio_logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = hook
    filters: Any = warnings.filters
    before = list(filters)
    warnings.filterwarnings("ignore", message="coroutine '.*' was never awaited")
    entry = filters[0]

    def restore() -> None:
        asyncio_logger.setLevel(level)
        if entry not in before:  # otherwise an outer call still needs the filter
            with contextlib.suppress(ValueError):  # the program has set its own filters since
                filters.remove(entry)
        if sys.unraisablehook is hook:
            sys.unraisablehook = usual

    return restore


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
    """Suppress the errors of abandoned checkpoint writes within this context."""
    restore = silence_threads()
    try:
        yield
    finally:
        restore()


class _RootHandler:
    """A context manager that adds a temporary handler to the root logger if it has none.

    When absl logs its first message, it calls `logging.basicConfig` if the root logger has no
    handler. The handler that absl adds would remain, and a later `logging.basicConfig` of the
    calling program would have no effect. Orbax logs through absl when it is imported.
    """

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._handler: logging.Handler | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._users += 1
            if not logging.root.handlers:
                self._handler = logging.StreamHandler()
                self._handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
                logging.root.addHandler(self._handler)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users and self._handler is not None:
                    logging.root.removeHandler(self._handler)
                    self._handler = None


# A context manager for the functions that another program calls. While it is active, messages are
# printed as absl would print them, and the root logger has the same handlers afterwards as before.
host_logging = _RootHandler()
