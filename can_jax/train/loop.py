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
from can_jax.utils.errors import UserError

Compiled = Callable[..., tuple[TrainState, dict[str, Any]]]


@dataclasses.dataclass
class Progress:
    """The state of a run that a checkpoint stores as JSON, beside the train state.

    Attributes:
        seconds: Training time so far, in seconds.
        loader: The state of the loader.
        passed_over: The number of batches that rollbacks skipped, so that no step of the run has
            them.
        rewinds: The number of rollbacks so far.
        guard: The state of the loss-spike detector.
        order_version: The version of the order of the examples.
        stream: The settings and the data that determine the stream of examples; see `check_stream`.
        pace: The state of the pace of a timed run.
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
        """Return the progress that this or an older version stored in a checkpoint."""
        names = {field.name for field in dataclasses.fields(cls)}
        # Runs that did not store the version of their order have version 1.
        restored = {"order_version": 1} | values
        return cls(**{name: value for name, value in restored.items() if name in names})


@runtime_checkable
class Logger(Protocol):
    """The logger of a run."""

    report: console.Reporter

    def log(self, step: int, metrics: dict[str, Any], clock: StepClock, loader: Loader) -> None:
        """Log the metrics of a step."""
        ...

    def saved(self, step: int) -> None:
        """Log that a checkpoint of a step is being saved, which is not a temporary one."""
        ...

    def early(self, step: int, metrics: dict[str, Any]) -> None:
        """Print a status line after a step without log, if the first log takes long."""
        ...


@dataclasses.dataclass
class Loop:
    """The training loop of one run.

    Attributes:
        step: The model and the optimizer to train, with the configuration.
        compiled: The train step, compiled for these devices.
        abstract: The train state as shapes with shardings, for a restore.
        total: The last step; that of a timed run changes with its pace.
        workdir: The run directory.
        lock: The lock on the run directory, checked before metrics, checkpoints and figures are
            written.
        loader: The loader of batches; its next batch is that of the first step.
        checkpoints: The checkpoints of the run.
        logger: The logger of metrics and messages.
        callbacks: The callbacks, such as evaluations.
        stopping: The signals that ask the job to stop.
        watchdog: The timer that ends a run without progress.
        replicas: The check that device copies agree; None if `check_replicas` is False.
        progress: The progress up to the step from which the run starts or resumes.
        startup: The measurement of the time to the first step; None after it was printed.
        trace: The profiler's trace of some steps; None without ``--profile``.
        pace: The pace of a timed run; None for others.
        end_seconds: The longest time measured so far for all evaluations of a step, in seconds. A
            timed run reserves it for the evaluations after its last step.
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

    def __call__(self, step: int, state: TrainState) -> tuple[int, TrainState]:
        """Train from a step on.

        Args:
            step: The step of ``state``.
            state: The train state; its buffers are donated.

        Returns:
            The last completed step, which is saved or being saved, and its state. It is an earlier
            step than ``total`` if a signal asked the job to stop.

        Raises:
            UserError: Training diverged, device copies differ, or checkpoints cannot be written.
        """
        config, clock, report = self.step.config, StepClock(), self.logger.report
        self._started = time.perf_counter() - self.progress.seconds
        self._saved_at = time.monotonic()
        self._guard = LossSpikeDetector(config, self.progress.guard)
        seconds: dict[Any, float] = {}  # of the latest call of each action
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
            due = [action for action in actions if step % action.every == 0 or last]
            # Saved before the evaluations: a run killed during them need not repeat the steps.
            evaluated = any(action.saves_first for action in due)
            regular = step % config.checkpoint.every_steps == 0 or evaluated or last or stop
            if self.pace and last:
                self.pace.finish(step)
            if regular or self._minutes_passed(step):
                with clock.paused():
                    self._save(step, state, temporary=not regular)
                self.watchdog.beat(step)
            for action in due:
                if stop and action.saves_first:
                    continue  # the resumed run makes up for the evaluations that are due
                began = time.perf_counter()
                with clock.paused():
                    self.lock.check()
                    action.act(step, state)
                seconds[action.act] = time.perf_counter() - began
                self.end_seconds = max(self.end_seconds, sum(seconds.values()))
                self.watchdog.beat(step)
            if stop:
                break
        self.progress.seconds = self._seconds()
        return step, state

    def _seconds(self) -> float:
        """Return the training time so far in seconds, that of earlier starts included."""
        return time.perf_counter() - self._started

    def _minutes_passed(self, step: int) -> bool:
        """Return whether a checkpoint is due by time. Collective: every process must call this.

        The clock of process 0 decides. With several processes it is read only at log steps, since
        the exchange blocks each process until all have reached the step.
        """
        config = self.step.config
        seconds = 60 * config.checkpoint.every_minutes
        if not seconds or (jax.process_count() > 1 and step % config.log_every_steps):
            return False
        passed = time.monotonic() - self._saved_at >= seconds
        return bool(gather("checkpoint by time", np.int32(passed))[0])

    def _save(self, step: int, state: TrainState, temporary: bool = False) -> None:
        """Start to save a checkpoint of a step. Collective: every process must call this.

        Raises:
            UserError: The copies of the state on several devices differ.
        """
        self._saved_at = time.monotonic()
        self.lock.check_together()
        if self.replicas and (difference := self.replicas(state)):
            raise UserError(
                f"at step {step} {difference}: that device or its memory is faulty. Leave it "
                "out; re-run the command to resume from the last checkpoint, at which all agreed"
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
        """Log a loss spike and return the checkpoint to roll back to; None if training continues.

        Raises:
            UserError: The run has used up its rollbacks.
        """
        spike = self.step.config.spike
        message = (
            f"the loss was more than {spike.deviations:g} deviations above its running mean for "
            f"{spike.steps} steps, up to step {step}"
        )
        if not spike.rewinds:
            logging.warning("%s; config.spike.rewinds=3 would roll back and skip it", message)
            return None
        if self.progress.rewinds >= spike.rewinds:
            raise UserError(
                f"{message}, after {self.progress.rewinds} rewinds (config.spike.rewinds): a lower "
                "optimizer.learning_rate may help, from an earlier checkpoint"
            )
        self.checkpoints.wait()
        target = self.checkpoints.newest(step - spike.steps - STEPS_IN_FLIGHT)
        if target is None:
            logging.warning(
                "%s, and there is no checkpoint from before it; the run continues", message
            )
        else:
            logging.warning("%s; rolling back to the checkpoint of step %d", message, target)
        return target

    def _go_back(self, step: int, target: int, state: TrainState) -> tuple[int, TrainState]:
        """Restore the state of an earlier step; the images since then are skipped.

        Collective: every process must call this.
        """
        self.lock.check_together()
        for leaf in jax.tree.leaves(state):
            leaf.delete()  # the memory may not hold two states
        with barrier("restoring the checkpoint"):
            self.checkpoints.set_aside_after(target, "was saved while the loss jumped")
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
            f"{size * (restored + before)} to {size * (step + before) - 1} are skipped"
        )
        return restored, state

    def _stop_broken(self, step: int, state: TrainState, batch: Batch) -> None:
        """Write the dump of the failed step and raise `UserError`, which ends the run.

        Collective: every process must call this.
        """
        self.lock.check_together()
        folder, config = self.workdir / "captures" / f"step_{step:08d}", self.step.config
        write_failed_step(folder, config, step, state, batch)
        raise UserError(
            f"{config.skipped_updates_limit} updates in a row were not finite, up to step "
            f"{step - STEPS_IN_FLIGHT}: python -m can_jax.replay {folder} shows the step; a "
            "lower optimizer.learning_rate may help, from an earlier checkpoint"
        )
