"""The protocol `Training`, which defines the model, data and schedule of a run."""

from collections.abc import Collection
from typing import Any, Protocol, runtime_checkable

from etils import epath
from ml_collections import ConfigDict

from can_jax.checkpoint.identity import Identity
from can_jax.monitoring import console
from can_jax.train.callback import RunContext
from can_jax.train.callbacks import Log
from can_jax.train.run_length import RunLength
from can_jax.train.step import Steps, TrainState


@runtime_checkable
class Training(Protocol):
    """A model, its data and its schedule, to be trained by `can_jax.train.run.run`."""

    @property
    def config(self) -> ConfigDict:
        """The resolved configuration."""
        ...

    @property
    def source(self) -> Any:
        """The source of the training images."""
        ...

    @property
    def times(self) -> RunLength:
        """The length and evaluation intervals of the run."""
        ...

    @property
    def step(self) -> Steps:
        """The train step, which holds the model's structure and the optimizer."""
        ...

    def identity(self) -> Identity | None:
        """Return the identity of the run, which a resume must not change; None for pretraining."""
        ...

    @property
    def allowed(self) -> Collection[str]:
        """The keys of `can_jax.checkpoint.resume.CHANGES` that this resume may change, given by the
        flag ``--allow_changes``."""
        ...

    def stream(self) -> dict[str, Any]:
        """Return the seed, the batch size and the fingerprint of the data.

        See `can_jax.checkpoint.resume.check_stream`.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Return the facts to print and store before the run begins, by label."""
        ...

    def begin(self, state: TrainState, report: console.Reporter) -> TrainState:
        """Return the state with which a new run starts, given a randomly initialized state."""
        ...

    def finished(self, workdir: epath.Path) -> bool:
        """Return whether a run that has taken its last step has also completed its last
        evaluation."""
        ...

    def callbacks(self, run: RunContext) -> Log:
        """Return the object that is both the logger of the run and its first callback."""
        ...
