"""A thread that calls the methods of a tracker, so that a run never waits for its client."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

MOST = 10_000  # the maximum number of calls that wait


class Lane:
    """A thread that executes calls in their order.

    Args:
        name: The name of the tracker, for the thread.
    """

    def __init__(self, name: str):
        self._calls: queue.Queue[tuple[Callable[..., object], Any] | None] = queue.Queue(MOST)
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"tracker {name}")
        self._thread.start()

    def put(self, call: Callable[..., object], *arguments: Any) -> bool:
        """Add a call, which must not raise an error; return False if too many calls wait."""
        try:
            self._calls.put_nowait((call, arguments))
        except queue.Full:
            return False
        return True

    def close(self, seconds: float) -> bool:
        """Wait until all calls are executed; return False if that takes longer than ``seconds``."""
        end = time.monotonic() + seconds
        try:
            self._calls.put(None, timeout=seconds)
        except queue.Full:
            return False
        self._thread.join(max(end - time.monotonic(), 0.0))
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, arguments = item
            call(*arguments)
