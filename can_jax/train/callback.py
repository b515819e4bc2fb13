"""Callbacks: code that a run calls at its start, at intervals, after a rollback and at its end.

A user's module registers a callback in `CALLBACKS`. Every pretraining and fine-tuning run of that
process then calls the callback.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from can_jax.monitoring import console
from can_jax.monitoring.metrics import MetricWriter
from can_jax.train.run_length import RunLength
from can_jax.train.step import Steps, TrainState
from can_jax.utils.registry import Registry


class PeriodicAction(NamedTuple):
    """A function that a run calls every ``every`` steps and after the last step.

    Attributes:
        every: The interval in steps, at least 1.
        act: The function; it takes the step and the state. The next step overwrites the state's
            buffers, so the function must copy the arrays that it retains.
        saves_first: Whether the run saves a checkpoint before each call, so that a run which is
            killed during a long evaluation need not repeat the steps. A run that is asked to stop
            skips these calls; ``on_train_start`` of the resumed run can repeat them.
    """

    every: int
    act: Callable[[int, TrainState], None]
    saves_first: bool = False


class Callback:
    """The base class of code that a run calls; its own methods do nothing.

    Every process calls each method at the same step, so the methods can contain collective
    operations. An exception that a method raises ends the run.
    """

    def on_train_start(self, step: int, state: TrainState) -> None:
        """Act before the first step.

        Args:
            step: The step from which the run starts or resumes; 0 for a new run.
            state: The state at that step.
        """

    def periodic_actions(self) -> list[PeriodicAction]:
        """Return the functions to call at intervals."""
        return []

    def on_rollback(self, step: int) -> None:
        """Act after a rollback to an earlier step; later steps are repeated."""

    def on_train_end(self, state: TrainState, seconds: float) -> None:
        """Act after the last step; ``seconds`` is the training time in seconds."""


@dataclasses.dataclass(frozen=True)
class RunContext:
    """A run, as its callbacks see it.

    Attributes:
        config: The resolved configuration.
        mesh: The device mesh over which the state is split.
        step: The model and the optimizer.
        source: The source of the training images.
        times: The durations of the run in steps; ``times.total`` is the last step.
        workdir: The run directory.
        writer: The writer of metrics: ``writer.scalars(step, {"name": value})``.
        report: The console: ``report.say("text")`` prints a line.
    """

    config: ConfigDict
    mesh: Mesh
    step: Steps
    source: Any
    times: RunLength
    workdir: epath.Path
    writer: MetricWriter
    report: console.Reporter


CallbackFactory = Callable[[RunContext], Callback]
CALLBACKS: Registry[CallbackFactory] = Registry("callback")
"""Functions or classes that return a callback, given the run."""


class CallbackList(Callback):
    """Several callbacks, called in order.

    Args:
        callbacks: The callbacks.
    """

    def __init__(self, callbacks: Sequence[Callback]):
        self._callbacks = tuple(callbacks)

    def on_train_start(self, step: int, state: TrainState) -> None:
        """Act before the first step."""
        for callback in self._callbacks:
            callback.on_train_start(step, state)

    def periodic_actions(self) -> list[PeriodicAction]:
        """Return the functions of all callbacks."""
        return [action for callback in self._callbacks for action in callback.periodic_actions()]

    def on_rollback(self, step: int) -> None:
        """Act after a rollback to an earlier step."""
        for callback in self._callbacks:
            callback.on_rollback(step)

    def on_train_end(self, state: TrainState, seconds: float) -> None:
        """Act after the last step."""
        for callback in self._callbacks:
            callback.on_train_end(state, seconds)
