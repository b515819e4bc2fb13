"""Suppression of errors in the background threads of a failed save, which `Checkpointer`
reports."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any


def silence_threads() -> Callable[[], None]:
    """Suppress the errors of abandoned checkpoint writes; return a function that undoes this.

    This function changes the level of the logger ``asyncio``, the warning filters and
    `sys.unraisablehook`. A command does not undo the changes, because writes that are freed when
    the process exits would log errors after the last message of the command.
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
        if entry not in before:  # otherwise an outer silence needs it
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
