"""The protocol `Training`: the model, data and schedule that a run trains."""

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
    """A model, its data and its schedule, which `run` trains."""

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
        """The durations of the run."""
        ...

    @property
    def step(self) -> Steps:
        """The train step, with the model and its optimizer."""
        ...

    def identity(self) -> Identity | None:
        """Return the values that a resume requires to be equal; None if all may change."""
        ...

    @property
    def allowed(self) -> Collection[str]:
        """The names in `CHANGES` whose settings may differ from those of the checkpoint."""
        ...

    def stream(self) -> dict[str, Any]:
        """Return the settings and the data that determine the stream of examples.

        See `can_jax.checkpoint.resume.check_stream`.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Return the facts to print and store before the run begins, by name."""
        ...

    def begin(self, state: TrainState, report: console.Reporter) -> TrainState:
        """Return the state of a new run before its first step, given a freshly initialized one."""
        ...

    def finished(self, workdir: epath.Path) -> bool:
        """Return whether a run at its last step is complete, its last evaluation included."""
        ...

    def callbacks(self, run: RunContext) -> Log:
        """Return the logger of the run, which is also its first callback."""
        ...
