"""A background thread that calls a tracker's methods, so that training does not wait for them."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

MOST = 10_000  # the maximum number of calls that wait


class Lane:
    """A background thread that executes queued calls in the order in which they were added.

    Args:
        name: The name of the tracker, which is also part of the thread's name.
    """

    def __init__(self, name: str):
        self._calls: queue.Queue[tuple[Callable[..., object], Any] | None] = queue.Queue(MOST)
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"tracker {name}")
        self._thread.start()

    def put(self, call: Callable[..., object], *arguments: Any) -> bool:
        """Queue ``call``, a function that must not raise an error; return False if the queue is
        full."""
        try:
            self._calls.put_nowait((call, arguments))
        except queue.Full:
            return False
        return True

    def close(self, seconds: float) -> bool:
        """Wait until all queued calls have run. Return False after a timeout of ``seconds``.

        A negative timeout is treated as 0.
        """
        end = time.monotonic() + seconds
        try:
            self._calls.put(None, timeout=max(seconds, 0.0))
        except queue.Full:
            return False
        self._thread.join(max(end - time.monotonic(), 0.0))
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, arguments = item
            call(*arguments)
