"""Timing of training steps, measured between moments at which the devices are idle.

JAX dispatches a step asynchronously, so timing the call alone would measure only the dispatch. Each
timing window therefore starts and ends by blocking on a result.
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
# The start of the process, if the next run begins with it; see `count_from_process_start`.
_command_began: float | None = None
INPUT_BOUND = 0.1  # the fraction of time waiting for images above which a message is printed
STEPS_IN_FLIGHT = 2  # keeps the devices busy, yet bounds the batches that they hold


class Window(NamedTuple):
    """The timing of consecutive training steps between two moments at which the devices are idle.

    Pauses, such as for an evaluation, are excluded.

    Attributes:
        steps: The number of steps.
        seconds: The total time of the steps in seconds.
        data_seconds: The part of ``seconds`` in which training waited for batches.
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
        """The fraction of the window in which training waited for batches, between 0 and 1."""
        return self.data_seconds / self.seconds if self.seconds else 0.0


def process_age() -> float:
    """Return the seconds since this process was started.

    If the system does not provide the start time, return the seconds since this module's import.
    """
    try:
        ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.perf_counter() - _IMPORTED


def count_from_process_start() -> None:
    """Let the next `Startup` measure the time from the start of this process.

    Only commands call this function. In a notebook or another program, a `Startup` measures the
    time from its own creation.
    """
    global _command_began
    _command_began = time.perf_counter() - process_age()


class Startup:
    """A stopwatch that measures, in named parts, the time from the start of a run to the end of its
    first step.

    Attributes:
        began: The value of `time.perf_counter` at the start of the run. The first run of a command
            starts with the process; any other run starts when this object is created.
    """

    def __init__(self) -> None:
        global _command_began
        self.began = time.perf_counter() if _command_began is None else _command_began
        _command_began = None
        self._last = self.began
        self._parts: dict[str, float] = {}

    def mark(self, part: str) -> None:
        """Record the time since the previous mark under the name ``part``."""
        now = time.perf_counter()
        self._parts[part] = now - self._last
        self._last = now

    def line(self, result: Any) -> str:
        """Block until the first step is finished; return a line with the seconds of each part."""
        jax.block_until_ready(result)
        self.mark("the step")
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self._parts.items())
        return f"first step after {sum(self._parts.values()):.1f}s: {parts}"


class StepClock:
    """A clock that times windows of consecutive steps and excludes pauses.

    Attributes:
        all_paused: The total seconds of all pauses so far.
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
        """Count the time in this context as time spent waiting for data."""
        start = time.perf_counter()
        yield
        self._data_seconds += time.perf_counter() - start

    def stepped(self, result: Any) -> None:
        """Count a dispatched step. Blocks while more than `STEPS_IN_FLIGHT` steps are pending.

        Args:
            result: An output of the step; the step counts as finished once this output is computed.
        """
        self._steps += 1
        self._in_flight.append(result)
        if len(self._in_flight) > STEPS_IN_FLIGHT:
            jax.block_until_ready(self._in_flight.popleft())

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time in this context from the window. On entry, blocks until devices are
        idle."""
        self._fence()
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._paused_seconds += seconds
        self.all_paused += seconds

    def window(self) -> Window:
        """Block until all counted steps are finished; return their timing and start a new
        window."""
        self._fence()
        seconds = time.perf_counter() - self._start - self._paused_seconds
        window = Window(self._steps, seconds, self._data_seconds)
        self._restart()
        return window

    def _fence(self) -> None:
        """Block until all counted steps are finished."""
        jax.block_until_ready(list(self._in_flight))
        self._in_flight.clear()


class InputWatch:
    """A monitor that reports once if the input pipeline limits the speed of training."""

    def __init__(self) -> None:
        self._windows, self._reported = 0, False

    def __call__(self, share: float, images_per_second: float) -> str | None:
        """Return a message for the first input-bound window, and None for every other window.

        The first window is ignored, since the buffers of the input pipeline are still filling.

        Args:
            share: The fraction of the window's time spent waiting for images, between 0 and 1.
            images_per_second: The throughput in the window.
        """
        self._windows += 1
        if self._reported or self._windows == 1 or share < INPUT_BOUND:
            return None
        self._reported = True
        possible = images_per_second / max(1 - share, 0.01)
        return (
            f"input-bound: training waits for images {100 * share:.0f}% of the time. It gets "
            f"{images_per_second:.0f} images/s and could process about {possible:.0f}. More CPU "
            "cores or a larger config.data.cache_gb may help; `python -m can_jax.benchmark input` "
            "times each stage of the input pipeline"
        )
