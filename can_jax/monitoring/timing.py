"""Where the time of a run goes, measured between points at which the devices are known to be idle.

JAX returns from a step before it is computed, so a clock around the call would measure nothing.
Here every window starts and ends with waiting for a result.
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

_IMPORTED = time.perf_counter()
INPUT_BOUND = 0.1  # share of the time spent waiting for images from which on it is worth a line
STEPS_IN_FLIGHT = 2  # enough to keep the devices busy, few enough to bound the batches they hold


class Window(NamedTuple):
    """One stretch of training, from idle to idle, pauses left out."""

    steps: int
    seconds: float
    data_seconds: float

    @property
    def step_seconds(self) -> float:
        """Seconds a step, on average."""
        return self.seconds / max(self.steps, 1)

    @property
    def data_wait(self) -> float:
        """The share of the time that was spent waiting for the next batch."""
        return self.data_seconds / self.seconds if self.seconds else 0.0


def process_age() -> float:
    """Seconds since this process was started; where the system does not tell, since its first
    import of this module."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.perf_counter() - _IMPORTED


class Startup:
    """Where the time from the command to the first step goes."""

    _told = False  # a further run of a process does not begin with the process

    def __init__(self) -> None:
        now = time.perf_counter()
        self._last = now if Startup._told else now - process_age()
        self._parts: dict[str, float] = {}
        Startup._told = True

    def mark(self, part: str) -> None:
        """What lies between the last mark and this one."""
        now = time.perf_counter()
        self._parts[part] = now - self._last
        self._last = now

    def line(self, result: Any) -> str:
        """Wait for the first step, and say how long everything took."""
        jax.block_until_ready(result)
        self.mark("the step")
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self._parts.items())
        return f"first step after {sum(self._parts.values()):.1f}s: {parts}"


class StepClock:
    """Measures windows of steps."""

    def __init__(self) -> None:
        self._in_flight: deque[Any] = deque()
        self._restart()

    def _restart(self) -> None:
        self._start = time.perf_counter()
        self._steps = 0
        self._data_seconds = self._paused_seconds = 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Around getting a batch."""
        start = time.perf_counter()
        yield
        self._data_seconds += time.perf_counter() - start

    def stepped(self, result: Any) -> None:
        """After a step was dispatched, with something it computes. Waits for earlier steps."""
        self._steps += 1
        self._in_flight.append(result)
        if len(self._in_flight) > STEPS_IN_FLIGHT:
            jax.block_until_ready(self._in_flight.popleft())

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around work between steps that is not training: the window's time stands still."""
        self._fence()
        start = time.perf_counter()
        yield
        self._paused_seconds += time.perf_counter() - start

    def window(self) -> Window:
        """Wait for all steps, close the window, and open the next one."""
        self._fence()
        seconds = time.perf_counter() - self._start - self._paused_seconds
        window = Window(self._steps, seconds, self._data_seconds)
        self._restart()
        return window

    def _fence(self) -> None:
        jax.block_until_ready(list(self._in_flight))
        self._in_flight.clear()


class InputWatch:
    """Says once when the devices wait for images, and how long."""

    def __init__(self) -> None:
        self._windows, self._said = 0, False

    def __call__(self, share: float, images_per_second: float) -> str | None:
        """The line to print after a window, if any.

        Args:
            share: of the window's time that was spent waiting.
            images_per_second: in the window.
        """
        self._windows += 1  # in the first the pipeline fills
        if self._said or self._windows == 1 or share < INPUT_BOUND:
            return None
        self._said = True
        possible = images_per_second / max(1 - share, 0.01)
        return (
            f"input-bound: the devices wait for images {100 * share:.0f}% of the time; they get "
            f"{images_per_second:.0f} images/s and could take about {possible:.0f}. More cores or "
            "config.data.cache_gb may help; python -m can_jax.benchmark input measures the stages"
        )
