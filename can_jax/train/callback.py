"""Callbacks, which a run calls at its start, at intervals, after a rollback and at its end.

A user's module registers its callbacks in `CALLBACKS`. Once callbacks are registered, every
pretraining or fine-tuning run of the same process calls them.
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
        every: The number of steps between calls, at least 1.
        act: A function ``act(step, state)``. The next step reuses the buffers of ``state``, so the
            function must copy any arrays that it keeps.
        saves_first: Whether the run saves a checkpoint before each call. If ``saves_first`` is
            True, a run that is killed during a long evaluation repeats no training steps when it
            resumes. After a stop signal, actions with ``saves_first`` are not called;
            ``on_train_start`` of the resumed run can call them instead.
    """

    every: int
    act: Callable[[int, TrainState], None]
    saves_first: bool = False


class Callback:
    """The base class of callbacks, whose methods do nothing.

    Every process calls each method at the same step, so the methods can contain collective
    operations. An exception raised by a method ends the run.
    """

    def on_train_start(self, step: int, state: TrainState) -> None:
        """Run before the first step after a start or resume.

        Args:
            step: The step from which the run starts or resumes; 0 for a new run.
            state: The train state at that step.
        """

    def periodic_actions(self) -> list[PeriodicAction]:
        """Return the functions to call periodically, with their intervals in steps."""
        return []

    def on_rollback(self, step: int) -> None:
        """Run after a rollback to an earlier step, from which training continues."""

    def on_train_end(self, state: TrainState, seconds: float) -> None:
        """Run after the last step; ``seconds`` is the total training time of all starts of the run,
        in seconds."""


@dataclasses.dataclass(frozen=True)
class RunContext:
    """The configuration, data, train step and loggers of a run, which its callbacks can use.

    Attributes:
        config: The resolved configuration.
        mesh: The device mesh on which the state is sharded.
        step: The train step, which holds the model's structure and the optimizer.
        source: The source of the training images.
        times: The length of the run and the intervals of its evaluations; ``times.total`` is the
            number of steps.
        workdir: The path of the run directory.
        writer: The writer of metrics; call ``writer.scalars(step, {"name": value})``.
        report: The console and log; ``report.say("text")`` prints a line.
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
"""The registered functions or classes that take a `RunContext` and return a callback."""


class CallbackList(Callback):
    """A callback that calls several callbacks in order.

    Args:
        callbacks: The callbacks, in the order in which they are called.
    """

    def __init__(self, callbacks: Sequence[Callback]):
        self._callbacks = tuple(callbacks)

    def on_train_start(self, step: int, state: TrainState) -> None:
        """Run before the first step after a start or resume."""
        for callback in self._callbacks:
            callback.on_train_start(step, state)

    def periodic_actions(self) -> list[PeriodicAction]:
        """Return the periodic functions of all callbacks."""
        return [action for callback in self._callbacks for action in callback.periodic_actions()]

    def on_rollback(self, step: int) -> None:
        """Run after a rollback to an earlier step."""
        for callback in self._callbacks:
            callback.on_rollback(step)

    def on_train_end(self, state: TrainState, seconds: float) -> None:
        """Run after the last step."""
        for callback in self._callbacks:
            callback.on_train_end(state, seconds)
