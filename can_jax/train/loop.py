"""The training loop: steps, logging, checkpoints, evaluations and rollback after a loss spike."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from absl import logging
from etils import epath

from can_jax.checkpoint.failed_step import write_failed_step
from can_jax.checkpoint.lock import RunLock
from can_jax.checkpoint.manager import Checkpointer
from can_jax.data.pipeline import order
from can_jax.data.pipeline.batch import Batch
from can_jax.data.pipeline.training_loader import Loader
from can_jax.distributed.replica_check import ReplicaCheck
from can_jax.distributed.runtime import StopSignals, barrier, gather
from can_jax.monitoring import console
from can_jax.monitoring.loss_spikes import LossSpikeDetector
from can_jax.monitoring.profile import TraceWindow
from can_jax.monitoring.timing import STEPS_IN_FLIGHT, Startup, StepClock
from can_jax.monitoring.watchdog import Watchdog
from can_jax.train.callback import Callback
from can_jax.train.pace import Pace
from can_jax.train.step import Steps, TrainState
from can_jax.utils.errors import UserError, one_line

Compiled = Callable[..., tuple[TrainState, dict[str, Any]]]


@dataclasses.dataclass
class Progress:
    """The progress of a run, which a checkpoint stores as JSON beside the train state.

    Attributes:
        seconds: The training time so far in seconds, summed over all starts.
        loader: The JSON-serializable state of the data loader.
        passed_over: The number of batches that rollbacks have skipped.
        rewinds: The number of rollbacks after loss spikes so far.
        guard: The JSON-serializable state of the loss-spike detector.
        order_version: The version of the algorithm that shuffles the examples.
        stream: The seed, the batch size and the fingerprint of the data; see `check_stream`.
        pace: The `Pace.state` of a timed run; None for other runs.
    """

    seconds: float = 0.0
    loader: Any = None
    passed_over: int = 0
    rewinds: int = 0
    guard: Any = None
    order_version: int = order.VERSION
    stream: dict[str, Any] = dataclasses.field(default_factory=dict)
    pace: Any = None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        """Return the progress stored in a checkpoint by this or an older version of the package."""
        names = {field.name for field in dataclasses.fields(cls)}
        # Runs that did not store the version of their order have version 1.
        restored = {"order_version": 1} | values
        return cls(**{name: value for name, value in restored.items() if name in names})


@runtime_checkable
class Logger(Protocol):
    """The interface through which the training loop logs metrics and messages."""

    report: console.Reporter

    def log(self, step: int, metrics: dict[str, Any], clock: StepClock, loader: Loader) -> None:
        """Write the metrics of a step and print a status line. Collective: every process must call
        this."""
        ...

    def saved(self, step: int) -> None:
        """Report the save of a checkpoint. The training loop does not call `saved` for temporary
        checkpoints."""
        ...

    def early(self, step: int, metrics: dict[str, Any]) -> None:
        """Print an early status line if the first regular one has not appeared for some time."""
        ...


@dataclasses.dataclass
class Loop:
    """The training loop of one run.

    Attributes:
        step: The train step, which holds the configuration, the model and the optimizer.
        compiled: The compiled train step.
        abstract: The train state as `jax.ShapeDtypeStruct` with shardings, for restoring
            checkpoints.
        total: The number of steps of the run; re-estimated during a timed run.
        workdir: The run directory.
        lock: The lock on the run directory, which is checked before each write.
        loader: The iterator over training batches, positioned at the batch of the first step.
        checkpoints: The manager that saves and restores the checkpoints of the run.
        logger: The logger of metrics and status lines.
        callbacks: The callbacks, which include the periodic evaluations.
        stopping: The handler of signals that ask the job to stop, such as SIGTERM.
        watchdog: The timer that prints thread stacks and ends the command if no step completes in
            time.
        replicas: The check that replicated arrays are equal on all devices; None if
            ``check_replicas`` is False.
        progress: The progress of the run, initially at the step from which it starts or resumes.
        startup: The measurement of the time to the first step; None once it is printed.
        trace: The profiler that traces some of the steps; None without ``--profile``.
        pace: The `Pace` of a timed run, which estimates the last step; None for other runs.
        end_seconds: The longest time in seconds that the evaluations of one step have taken so far.
            A timed run reserves ``end_seconds`` for the evaluations after its last step.
        stopped: Whether a stop signal ended the loop. If True, the evaluations due at the last
            completed step were skipped.
    """

    step: Steps
    compiled: Compiled
    abstract: TrainState
    total: int
    workdir: epath.Path
    lock: RunLock
    loader: Loader
    checkpoints: Checkpointer
    logger: Logger
    callbacks: Callback
    stopping: StopSignals
    watchdog: Watchdog
    replicas: ReplicaCheck | None
    progress: Progress
    startup: Startup | None = None
    trace: TraceWindow | None = None
    pace: Pace | None = None
    end_seconds: float = 0.0
    stopped: bool = False

    def __call__(self, step: int, state: TrainState) -> tuple[int, TrainState]:
        """Train from ``step`` until the last step or a stop signal.

        Args:
            step: The number of steps that the run has already taken.
            state: The train state; its buffers are donated.

        Returns:
            The last completed step and the train state after it. The checkpoint of the last
            completed step is saved or being saved. After a stop signal, the attribute ``stopped``
            is True, and the last completed step is usually below ``total``.

        Raises:
            UserError: Training diverged, replicated arrays differ between devices, checkpoints
                cannot be written, or another run has taken over the directory.
        """
        config, clock, report = self.step.config, StepClock(), self.logger.report
        self._started = time.perf_counter() - self.progress.seconds
        self._saved_at = time.monotonic()
        self._guard = LossSpikeDetector(config, self.progress.guard)
        action_seconds: dict[int, float] = {}  # the duration of the latest call of each action
        while step < self.total:
            step += 1
            with clock.waiting_for_data():
                batch = next(self.loader)
            if self.trace:
                self.trace.before(step)
            if self.pace:
                state, metrics = self.compiled(state, batch, self.pace.position(step - 1))
            else:
                state, metrics = self.compiled(state, batch)
            if self.startup:
                report.say(self.startup.line(state.step))
                self.startup = None
            if self.trace and (line := self.trace.after(step, state.step)):
                report.say(line)
            clock.stepped(metrics["loss/total"])
            self.watchdog.beat(step)
            report.advance(step)

            verdict = self._guard(metrics["loss/total"], metrics["skipped_steps"])
            if verdict == "broken":
                self._stop_broken(step, state, batch)
            if verdict == "spike" and (target := self._before_spike(step)) is not None:
                with clock.paused():
                    step, state = self._go_back(step, target, state)
                continue

            if self.pace:
                self.pace.update(step, clock.all_paused, self.end_seconds)
                self.total = self.pace.total
            last, stop = step == self.total, self.stopping.after(step)
            if step % config.log_every_steps == 0 or last:
                self.lock.check()
                self.logger.log(step, metrics, clock, self.loader)
            else:
                self.logger.early(step, metrics)
            actions = self.callbacks.periodic_actions()
            due = [(i, a) for i, a in enumerate(actions) if step % a.every == 0 or last]
            # Saved before the evaluations: a run killed during them need not repeat the steps.
            evaluates = any(action.saves_first for _, action in due)
            intervals = config.checkpoint.every_steps, config.checkpoint.keep_every_steps
            regular = evaluates or last or stop or any(n and step % n == 0 for n in intervals)
            if self.pace and last:
                self.pace.finish(step)
            if regular or self._minutes_passed(step):
                with clock.paused():
                    self._save(step, state, temporary=not regular)
                self.watchdog.beat(step)
            for index, action in due:
                if stop and action.saves_first:
                    continue  # the resumed run makes up for the evaluations that are due
                started = time.perf_counter()
                with clock.paused():
                    self.lock.check()
                    action.act(step, state)
                action_seconds[index] = time.perf_counter() - started
                self.end_seconds = max(self.end_seconds, sum(action_seconds.values()))
                self.watchdog.beat(step)
            if stop:
                self.stopped = True
                break
        self.progress.seconds = self._seconds()
        return step, state

    def _seconds(self) -> float:
        """Return the training time so far in seconds, summed over all starts."""
        return time.perf_counter() - self._started

    def _minutes_passed(self, step: int) -> bool:
        """Return whether a time-based checkpoint is due. Collective: every process must call this.

        The clock of process 0 determines the result. With several processes, the result is False
        between log steps. A check at every step would make the processes wait for one another.
        """
        config = self.step.config
        seconds = 60 * config.checkpoint.every_minutes
        if not seconds or (jax.process_count() > 1 and step % config.log_every_steps):
            return False
        passed = time.monotonic() - self._saved_at >= seconds
        return bool(gather("checkpoint by time", np.int32(passed))[0])

    def _save(self, step: int, state: TrainState, temporary: bool = False) -> None:
        """Start an asynchronous save of a checkpoint. Collective: every process must call this.

        Raises:
            UserError: A replicated array of the state differs between devices.
        """
        self._saved_at = time.monotonic()
        self.lock.check_together()
        if self.replicas and (difference := self.replicas(state)):
            raise UserError(
                f"at step {step}, {difference}, so a device or its memory is probably faulty. "
                "Exclude it and re-run the command, which resumes from the last checkpoint; that "
                "was saved before the copies differed"
            )
        progress = self.progress
        progress.seconds, progress.loader = self._seconds(), self.loader.state
        progress.guard = self._guard.state
        progress.pace = self.pace.state(step) if self.pace else None
        with barrier("saving the checkpoint"):
            self.checkpoints.save(step, state, dataclasses.asdict(progress), temporary)
        if not temporary:
            self.logger.saved(step)

    def _before_spike(self, step: int) -> int | None:
        """Log a loss spike, and return the step to roll back to, or None to continue training.

        Raises:
            UserError: The run has already rolled back ``spike.rewinds`` times.
        """
        spike, last = self.step.config.spike, step - STEPS_IN_FLIGHT
        message = (
            f"the loss was more than {spike.deviations:g} standard deviations above its running "
            f"mean for {spike.steps} steps, up to step {last}"
        )
        if not spike.rewinds:
            logging.warning(
                "%s; config.spike.rewinds=3 would roll back to a checkpoint from before the "
                "spike, and skip the batches since",
                message,
            )
            return None
        if self.progress.rewinds >= spike.rewinds:
            raise UserError(
                f"{message}. The run ends, since it has rolled back {self.progress.rewinds} times, "
                f"the limit of config.spike.rewinds={spike.rewinds}: a lower "
                "optimizer.learning_rate may help"
            )
        self.checkpoints.wait()
        target = self.checkpoints.newest(last - spike.steps)
        if target is None:
            logging.warning(
                "%s; there is no checkpoint from before the spike, so the run continues", message
            )
        else:
            logging.warning("%s; rolling back to the checkpoint of step %d", message, target)
        return target

    def _go_back(self, step: int, target: int, state: TrainState) -> tuple[int, TrainState]:
        """Roll back to the checkpoint of step ``target``, and skip the batches of the undone steps.

        Collective: every process must call this.
        """
        self.lock.check_together()
        for leaf in jax.tree.leaves(state):
            leaf.delete()  # the memory may not hold two states
        with barrier("restoring the checkpoint"):
            self.checkpoints.set_aside_after(target, "was saved during a loss spike")
            restored, state, run = self.checkpoints.restore(target, self.abstract)
            self.checkpoints.set_aside_refused()
        self._guard = LossSpikeDetector(self.step.config, Progress.from_json(run).guard)
        self.callbacks.on_rollback(restored)
        if self.pace:
            self.pace.rolled_back(step, restored)
        size, before = self.step.config.batch_size, self.progress.passed_over
        self.progress.passed_over += step - restored
        self.progress.rewinds += 1
        self.logger.report.say(
            f"resumed from the checkpoint of step {restored}; the images at positions "
            f"{size * (restored + before)} to {size * (step + before) - 1} of the data order are "
            "skipped"
        )
        return restored, state

    def _stop_broken(self, step: int, state: TrainState, batch: Batch) -> None:
        """Write the dump of a failed step, and raise `UserError` to end the run.

        The dump holds only the latest failed step, since the batches of earlier failed steps are no
        longer in memory. Collective: every process must call this.
        """
        self.lock.check_together()
        folder, config = self.workdir / "captures" / f"step_{step:08d}", self.step.config
        try:
            write_failed_step(folder, config, step, state, batch)
            dump = f"python -m can_jax.replay {folder} repeats the latest step, {step}"
        except (OSError, UserError) as error:
            dump = f"The latest step, {step}, could not be written to {folder}: {one_line(error)}"
        raise UserError(
            f"{config.skipped_updates_limit} updates in a row were not finite, up to step "
            f"{step - STEPS_IN_FLIGHT}; a lower optimizer.learning_rate may help. {dump}"
        )
