"""The last step and the schedule position of timed runs, which end at a time limit.

On devices of any speed, a timed run ends at about its time limit, with the learning rate at the end
of its schedule. The schedule has `TIMED_STEPS` virtual steps. The schedule position grows linearly
with the step number and reaches the end at the estimated last step. The last step is re-estimated
at intervals of 1/200 of the time limit, clipped to the range of 2 to 60 seconds. If a step takes
longer than the interval, the last step is re-estimated after every step.
"""

import contextlib
import json
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from can_jax.config.durations import MOST_STEPS, TIMED_STEPS
from can_jax.distributed.runtime import gather
from can_jax.monitoring.timing import STEPS_IN_FLIGHT
from can_jax.utils.files import read_json, replace_text

FILE = "time_used.json"
# The first window starts when `STEPS_IN_FLIGHT` steps are pending. So it excludes compilation, the
# first probe and the first step, and each dispatch waits for one step. The window is longer than
# one step, since the dispatch after a log step waits for no step.
FIRST_WINDOW = STEPS_IN_FLIGHT + 1  # steps before the first window
FIRST_STEPS = 2  # the number of steps in the first window
SHARE = 1 / 200  # the interval between estimates, as a fraction of the time limit
SHORTEST, LONGEST = 2.0, 60.0  # the bounds of that interval in seconds
EXIT_SECONDS = 2.0  # reserved for the exit of the process
LAST_STEPS = 20  # the maximum number of further steps if the time is already over


class Used(NamedTuple):
    """The time that a run has used, summed over all its starts.

    Attributes:
        seconds: The time used, in seconds.
        allowed: The time limit in seconds with which the run was last started.
        last_step: The last step of the run, or None if the run has not reached it.
        evaluation_seconds: The longest time in seconds that the evaluations of one step took.
        step_seconds: The seconds per step when ``evaluation_seconds`` was measured; 0 before the
            first evaluations.
    """

    seconds: float = 0.0
    allowed: float = 0.0
    last_step: int | None = None
    evaluation_seconds: float = 0.0
    step_seconds: float = 0.0


def time_used(workdir: epath.Path) -> Used:
    """Return the time that the run in a directory has used; 0 seconds for a new run.

    Raises:
        UserError: The file ``time_used.json`` cannot be read.
    """
    path = workdir / FILE
    if not path.exists():
        return Used()
    values = read_json(path)
    return Used(**{name: value for name, value in values.items() if name in Used._fields})


def known_last_step(workdir: epath.Path, seconds: float) -> int | None:
    """Return the last step of a timed run, or None if the run has not reached it.

    Args:
        workdir: The run directory.
        seconds: The run's time limit in seconds, as set for this start. If the stored time limit
            differs from ``seconds``, the result is None, since the run continues until the new
            limit.

    Raises:
        UserError: The file ``time_used.json`` cannot be read.
    """
    used = time_used(workdir)
    return used.last_step if used.allowed == seconds else None


class Pace:
    """The estimate of the last step of a timed run, and the run's schedule position.

    Attributes:
        total: The estimated last step, or the stored last step of a run that has reached it;
            `MOST_STEPS` before the first estimate.
    """

    def __init__(
        self,
        workdir: epath.Path,
        seconds: float,
        began: float,
        step: int,
        stored: Any = None,
        trained: float = 0.0,
    ):
        """Start the clock of a new or resumed timed run.

        The training time of a run without an earlier time limit counts as used. Its schedule
        position is the used fraction of the limit.

        Args:
            workdir: The run directory, in which the time used is stored.
            seconds: The time limit in seconds for all starts of the run together.
            began: The value of `time.perf_counter` when this start of the run began.
            step: The step from which the run starts or resumes.
            stored: The result of `state` that the checkpoint of ``step`` holds; None for a run
                that had no time limit before.
            trained: The training time of the run before this start, in seconds.
        """
        self._path, self._allowed = workdir / FILE, seconds
        used = time_used(workdir)
        if stored is None:
            used = used._replace(seconds=max(used.seconds, trained))
        self._began = began - used.seconds
        stored = stored or {"position": TIMED_STEPS * min(trained / seconds, 1.0)}
        position = float(stored.get("position", 0.0))
        position *= stored.get("allowed", seconds) / seconds
        self._anchor = (step, position)
        self.total = MOST_STEPS
        if used.allowed == seconds and used.last_step is not None:
            self.total = used.last_step
        self._fixed = self.total != MOST_STEPS
        self._next = step + FIRST_WINDOW
        self._last: tuple[int, float, float] | None = None  # the start of the window
        self._step_seconds: float | None = None
        self._evaluation = (used.evaluation_seconds, used.step_seconds)
        self._paused = self._stepping = 0.0
        self._over = False  # the time was over before the last step

    def position(self, step: int) -> np.float32:
        """Return the schedule position, in virtual steps, after ``step`` steps."""
        start, position = self._anchor
        if step >= self.total:
            return np.float32(TIMED_STEPS)
        share = (step - start) / max(self.total - start, 1)
        return np.float32(position + (TIMED_STEPS - position) * max(share, 0.0))

    def state(self, step: int) -> dict[str, float]:
        """Return the JSON values to store in the checkpoint of ``step``, for resuming the run."""
        return {"position": float(self.position(step)), "allowed": self._allowed}

    def used(self) -> float:
        """Return the seconds that the run has used, summed over all starts."""
        return time.perf_counter() - self._began

    def left(self) -> float:
        """Return the seconds left until the time limit; at least 0."""
        return max(self._allowed - self.used(), 0.0)

    def share(self) -> float:
        """Return the used fraction of the time limit, at most 1."""
        return min(self.used() / self._allowed, 1.0)

    def rolled_back(self, step: int, to: int) -> None:
        """Roll back from ``step`` to step ``to``, but keep the schedule position of ``step``."""
        self._anchor = (to, float(self.position(step)))
        self._next, self._last = to + FIRST_WINDOW, None

    def update(self, step: int, paused: float, evaluation: float) -> None:
        """Re-estimate the last step if the interval between estimates has passed.

        Collective: every process must call this after every step. Process 0 decides.

        Args:
            step: The step that was just dispatched to the devices.
            paused: The total time in seconds for which training has been paused since this process
                started, for example by evaluations.
            evaluation: The time in seconds that all evaluations after a step took together, as the
                maximum over the steps since this process started. The maximum over all starts of
                the run is reserved for the evaluations after the last step. The reserved time is
                scaled up if steps are now slower than when it was measured.
        """
        if self._fixed or step < self._next or step >= self.total:
            return
        now = time.perf_counter()
        if self._last is None:
            self._last, self._next = (step, now, paused), step + FIRST_STEPS
            return
        last, then, before = self._last
        pause = paused - before
        seconds = max(now - then - pause, 1e-9) / max(step - last, 1)
        old = self._step_seconds
        self._step_seconds = seconds if old is None else (old + seconds) / 2
        if evaluation > self._evaluation[0]:
            self._evaluation = (evaluation, self._step_seconds)
        longest, then_per_step = self._evaluation
        reserve = longest * max(self._step_seconds / (then_per_step or self._step_seconds), 1.0)
        self._paused += pause
        self._stepping += now - then - pause
        self._last = (step, now, paused)
        interval = min(max(SHARE * self._allowed, SHORTEST), LONGEST)
        remaining = self._allowed - self.used() - reserve - EXIT_SECONDS
        each = self._step_seconds * (1 + self._paused / max(self._stepping, interval))
        total = step + int(remaining / each)
        if total <= step:
            over = step + min(LAST_STEPS, max(1, step // 50))
            total = max(self.total, step) if self._over else over
            self._over = True
        following = step + max(1, int(interval / self._step_seconds))
        decided = np.array([min(total, MOST_STEPS), min(following, MOST_STEPS)], np.int32)
        total, self._next = map(int, gather("last step", decided)[0])
        self._anchor, self.total = (step, float(self.position(step))), total
        self.store()

    def finish(self, step: int) -> None:
        """Store ``step`` as the last step of the run."""
        self.total, self._fixed = step, True
        self.store()

    def store(self) -> None:
        """Write the time used so far to ``time_used.json``. Only process 0 writes the file."""
        if jax.process_index():
            return
        last = self.total if self._fixed else None
        used = Used(self.used(), self._allowed, last, *self._evaluation)
        with contextlib.suppress(OSError):  # with a full disk, a resume may count less time
            replace_text(self._path, json.dumps(used._asdict()) + "\n")
