"""Timing of a run, measured between points at which the devices are idle.

JAX returns from a step before it is computed, so a clock around the call would measure only its
dispatch. Every window here starts and ends by blocking on a result.
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
INPUT_BOUND = 0.1  # the fraction of time waiting for images above which a message is printed
STEPS_IN_FLIGHT = 2  # keeps the devices busy, yet bounds the batches that they hold


class Window(NamedTuple):
    """The timing of consecutive training steps between two moments at which the devices are idle.

    Pauses, such as for an evaluation, are excluded.

    Attributes:
        steps: The number of steps.
        seconds: Their time in seconds.
        data_seconds: The seconds spent waiting for batches.
    """

    steps: int
    seconds: float
    data_seconds: float

    @property
    def step_seconds(self) -> float:
        """The mean seconds per step."""
        return self.seconds / max(self.steps, 1)

    @property
    def data_wait(self) -> float:
        """The fraction of the time spent waiting for batches."""
        return self.data_seconds / self.seconds if self.seconds else 0.0


def process_age() -> float:
    """Return the seconds since this process was started.

    On a system without that information they are counted from the first import of this module.
    """
    try:
        ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.perf_counter() - _IMPORTED


class Startup:
    """The time from the start of the command to the end of the first step, by part."""

    _told = False  # only the first run of a process counts from the start of the process

    def __init__(self) -> None:
        now = time.perf_counter()
        self._last = now if Startup._told else now - process_age()
        self._parts: dict[str, float] = {}
        Startup._told = True

    def mark(self, part: str) -> None:
        """Attribute the time since the last mark to a part."""
        now = time.perf_counter()
        self._parts[part] = now - self._last
        self._last = now

    def line(self, result: Any) -> str:
        """Block until the first step is finished, and return a line with the time of each part."""
        jax.block_until_ready(result)
        self.mark("the step")
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self._parts.items())
        return f"first step after {sum(self._parts.values()):.1f}s: {parts}"


class StepClock:
    """A clock that times groups of consecutive steps, pauses excluded.

    Attributes:
        all_paused: The seconds of all pauses so far.
    """

    def __init__(self) -> None:
        self.all_paused = 0.0
        self._in_flight: deque[Any] = deque()
        self._restart()

    def _restart(self) -> None:
        self._start = time.perf_counter()
        self._steps = 0
        self._data_seconds = self._paused_seconds = 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time of the body as waiting for data."""
        start = time.perf_counter()
        yield
        self._data_seconds += time.perf_counter() - start

    def stepped(self, result: Any) -> None:
        """Count a dispatched step; blocks while more than `STEPS_IN_FLIGHT` are pending.

        Args:
            result: An output of the step, to wait for.
        """
        self._steps += 1
        self._in_flight.append(result)
        if len(self._in_flight) > STEPS_IN_FLIGHT:
            jax.block_until_ready(self._in_flight.popleft())

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the body from the window; blocks until the devices are idle."""
        self._fence()
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._paused_seconds += seconds
        self.all_paused += seconds

    def window(self) -> Window:
        """Block until all steps are finished, close the window, and start the next one."""
        self._fence()
        seconds = time.perf_counter() - self._start - self._paused_seconds
        window = Window(self._steps, seconds, self._data_seconds)
        self._restart()
        return window

    def _fence(self) -> None:
        """Block until all steps are finished."""
        jax.block_until_ready(list(self._in_flight))
        self._in_flight.clear()


class InputWatch:
    """A one-time message when training is bound by its input pipeline."""

    def __init__(self) -> None:
        self._windows, self._said = 0, False

    def __call__(self, share: float, images_per_second: float) -> str | None:
        """Return the line to print after a window, or None.

        Args:
            share: The fraction of the window's time spent waiting for images.
            images_per_second: The throughput of the window.
        """
        self._windows += 1  # the first one is ignored, since the pipeline is still filling
        if self._said or self._windows == 1 or share < INPUT_BOUND:
            return None
        self._said = True
        possible = images_per_second / max(1 - share, 0.01)
        return (
            f"input-bound: the devices wait for images {100 * share:.0f}% of the time; they get "
            f"{images_per_second:.0f} images/s and could take about {possible:.0f}. More cores or "
            "config.data.cache_gb may help; python -m can_jax.benchmark input measures the stages"
        )
