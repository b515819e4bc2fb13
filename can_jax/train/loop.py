"""Step after step, and what is due after each: a line, a checkpoint, a look, a way back."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from absl import logging
from etils import epath

from can_jax.checkpoint.failed_step import write_capture
from can_jax.checkpoint.lock import RunLock
from can_jax.checkpoint.manager import Checkpointer
from can_jax.data.pipeline import order
from can_jax.data.pipeline.batch import Batch
from can_jax.data.pipeline.training_loader import Loader
from can_jax.distributed.replica_check import ReplicaCheck
from can_jax.distributed.runtime import Stopping, gather, meeting
from can_jax.monitoring import console
from can_jax.monitoring.loss_spikes import Guard
from can_jax.monitoring.profile import TraceWindow
from can_jax.monitoring.timing import STEPS_IN_FLIGHT, Startup, StepClock
from can_jax.monitoring.watchdog import Watchdog
from can_jax.train.step import Steps, TrainState
from can_jax.utils.errors import UserError

Compiled = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]


@dataclasses.dataclass
class Progress:
    """What a checkpoint holds of a run beside its state, in what JSON can hold.

    Attributes:
        seconds: that it took so far.
        loader: the state of its loader.
        passed_over: batches that were drawn and are not among its steps, since it went back.
        rewinds: how often it did.
        guard: the state of its guard.
        order_version: the version of the order of its examples.
        stream: What decides which example stands where in its stream; see `check_stream`.
    """

    seconds: float = 0.0
    loader: Any = None
    passed_over: int = 0
    rewinds: int = 0
    guard: Any = None
    order_version: int = order.VERSION
    stream: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        """Return what was saved, by this version or an older one."""
        names = {field.name for field in dataclasses.fields(cls)}
        known = {"order_version": 1} | values  # of runs that did not store it
        return cls(**{name: value for name, value in known.items() if name in names})


class Hook(NamedTuple):
    """Something to look at now and then: every so many steps, and after the last."""

    every: int
    act: Callable[[int, TrainState], None]


@runtime_checkable
class Watcher(Protocol):
    """What looks at a run."""

    report: console.Reporter

    def look_first(self, number: int, state: TrainState) -> None:
        """Before any step, or before going on from one: at what a killed run did not come to."""
        ...

    def hooks(self) -> list[Hook]:
        """What is due now and then."""
        ...

    def log(self, number: int, metrics: dict[str, Any], clock: StepClock, loader: Loader) -> None:
        """Write down what is known after a step."""
        ...

    def go_back(self, number: int) -> None:
        """The steps after this one come again."""
        ...

    def conclude(self, state: TrainState, seconds: float) -> None:
        """After the last step."""
        ...


@dataclasses.dataclass
class Loop:
    """All that the steps of a run need.

    Attributes:
        step: what is computed, and the configuration.
        compiled: the train step for these devices.
        abstract: the state, with shapes and shardings.
        total: the last step.
        workdir: the run directory.
        lock: Proves, before anything is written, that the directory is this run's.
        progress: up to the step from which the run goes on.
        startup: until the first of these steps.
        trace: of some steps, if wanted.
    """

    step: Steps
    compiled: Compiled
    abstract: TrainState
    total: int
    workdir: epath.Path
    lock: RunLock
    loader: Loader
    checkpoints: Checkpointer
    watcher: Watcher
    stopping: Stopping
    watchdog: Watchdog
    replicas: ReplicaCheck | None
    progress: Progress
    startup: Startup | None = None
    trace: TraceWindow | None = None

    def __call__(self, number: int, state: TrainState) -> tuple[int, TrainState]:
        """Train from a step on.

        Returns:
            The last step that was done, which is saved, and its state: the last of all, or that
            after which the run was told to stop.
        """
        config, clock, report = self.step.config, StepClock(), self.watcher.report
        self._started = time.perf_counter() - self.progress.seconds
        self._saved_at = time.monotonic()
        self._guard = Guard(config, self.progress.guard)
        while number < self.total:
            number += 1
            with clock.waiting_for_data():
                batch = next(self.loader)
            if self.trace:
                self.trace.before(number)
            state, metrics = self.compiled(state, batch)
            if self.startup:
                report.say(self.startup.line(state.step))
                self.startup = None
            if self.trace and (line := self.trace.after(number, state.step)):
                report.say(line)
            clock.stepped(metrics["loss/total"])
            self.watchdog.beat(number)
            report.advance(number)

            verdict = self._guard(metrics["loss/total"], metrics["skipped_steps"])
            if verdict == "broken":
                self._stop_broken(number, state, batch)
            if verdict == "spike" and (target := self._before_spike(number)) is not None:
                with clock.paused():
                    number, state = self._go_back(number, target, state)
                continue

            last, stop = number == self.total, self.stopping.after(number)
            if number % config.log_every_steps == 0 or last:
                self.lock.check()
                self.watcher.log(number, metrics, clock, self.loader)
            due = [hook for hook in self.watcher.hooks() if number % hook.every == 0 or last]
            # Looking takes its time: a run that is killed meanwhile has not to come here again.
            regular = number % config.checkpoint.every_steps == 0 or due or last or stop
            if regular or self._minutes_passed(number):
                with clock.paused():
                    self._save(number, state, temporary=not regular)
                self.watchdog.beat(number)
            if stop:
                break  # the run that goes on makes up for what else is due
            for hook in due:
                with clock.paused():
                    self.lock.check()
                    hook.act(number, state)
                self.watchdog.beat(number)
        self.progress.seconds = self._seconds()
        return number, state

    def _seconds(self) -> float:
        """That the run took so far."""
        return time.perf_counter() - self._started

    def _minutes_passed(self, number: int) -> bool:
        """Return whether a checkpoint is due by time. Collective: every process must call this.

        The clock of process 0 decides. Several processes ask it at log steps only, since they wait
        for each other.
        """
        config = self.step.config
        seconds = 60 * config.checkpoint.every_minutes
        if not seconds or (jax.process_count() > 1 and number % config.log_every_steps):
            return False
        passed = time.monotonic() - self._saved_at >= seconds
        return bool(gather("checkpoint by time", np.int32(passed))[0])

    def _save(self, number: int, state: TrainState, temporary: bool = False) -> None:
        """Begin to save a step, if all devices agree about it."""
        self._saved_at = time.monotonic()
        self.lock.check_together()
        if self.replicas and (difference := self.replicas(state)):
            raise UserError(
                f"at step {number} {difference}: that device or its memory is faulty. Leave it "
                "out; the same command goes on from the last checkpoint, at which all agreed"
            )
        progress = self.progress
        progress.seconds, progress.loader = self._seconds(), self.loader.state
        progress.guard = self._guard.state
        with meeting("saving the checkpoint"):
            self.checkpoints.save(number, state, dataclasses.asdict(progress), temporary)

    def _before_spike(self, number: int) -> int | None:
        """Say that the loss jumped; the checkpoint to go back to, None for going on.

        Raises:
            UserError: it jumped too often.
        """
        spike = self.step.config.spike
        message = (
            f"the loss was more than {spike.deviations:g} deviations above its running mean for "
            f"{spike.steps} steps, up to step {number}"
        )
        if not spike.rewinds:
            logging.warning("%s; config.spike.rewinds=3 would go back and pass over it", message)
            return None
        if self.progress.rewinds >= spike.rewinds:
            raise UserError(
                f"{message}, after {self.progress.rewinds} rewinds (config.spike.rewinds): a lower "
                "optimizer.learning_rate may help, from an earlier checkpoint"
            )
        self.checkpoints.wait()
        target = self.checkpoints.newest(number - spike.steps - STEPS_IN_FLIGHT)
        if target is None:
            logging.warning("%s, and there is no checkpoint from before; the run goes on", message)
        else:
            logging.warning("%s; going back to the checkpoint of step %d", message, target)
        return target

    def _go_back(self, number: int, target: int, state: TrainState) -> tuple[int, TrainState]:
        """The state of an earlier step. The images since are passed over."""
        self.lock.check_together()
        for leaf in jax.tree.leaves(state):
            leaf.delete()  # there may be no room for two
        with meeting("restoring the checkpoint"):
            self.checkpoints.set_aside_after(target, "was saved while the loss jumped")
            found, state, run = self.checkpoints.restore(target, self.abstract)
            self.checkpoints.set_aside_refused()
        self._guard = Guard(self.step.config, Progress.from_json(run).guard)
        self.watcher.go_back(found)
        size, before = self.step.config.batch_size, self.progress.passed_over
        self.progress.passed_over += number - found
        self.progress.rewinds += 1
        self.watcher.report.say(
            f"resumed from the checkpoint of step {found}; the images at positions "
            f"{size * (found + before)} to {size * (number + before) - 1} are passed over"
        )
        return found, state

    def _stop_broken(self, number: int, state: TrainState, batch: Batch) -> None:
        """Keep the step for a closer look, and end the run."""
        self.lock.check_together()
        folder, config = self.workdir / "captures" / f"step_{number:08d}", self.step.config
        write_capture(folder, config, number, state, batch)
        raise UserError(
            f"{config.skipped_updates_limit} updates in a row were not finite, up to step "
            f"{number - STEPS_IN_FLIGHT}: python -m can_jax.replay {folder} shows the step; a "
            "lower optimizer.learning_rate may help, from an earlier checkpoint"
        )
