"""Silence for the background threads of a failed save, whose errors `Checkpointer` reports."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any


def silence_threads() -> Callable[[], None]:
    """Silence the errors of abandoned writes, and return a function that ends the silence.

    It changes logging levels, warning filters and `sys.unraisablehook`. A command never ends the
    silence: writes that are freed at the exit of the process would log their errors after the
    message of the command.
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
    """Silence the errors of abandoned writes within this context."""
    restore = silence_threads()
    try:
        yield
    finally:
        restore()
