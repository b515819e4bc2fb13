"""The base class and the registry of trackers, which record the metrics and settings of a run.

`config.trackers` selects among the built-in trackers, of which `jsonl` is always active. A user's
module can register further trackers in `TRACKERS`. Registered trackers are used by all pretraining
and fine-tuning runs of the process.
"""

import contextlib
import importlib.util
import json
import uuid
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from etils import epath
from jaxtyping import UInt8

from can_jax.utils.errors import UserError
from can_jax.utils.extras import install_command
from can_jax.utils.files import replace_text
from can_jax.utils.registry import Registry

Outcome = Literal["finished", "stopped", "failed"]
# The clients of trackers that are optional extras of the same name.
EXTRAS = ("wandb", "mlflow", "aim")
BUILT_IN = ("jsonl", "tensorboard", *EXTRAS)
IDS = "trackers.json"


class Tracker:
    """A base class for trackers, which record the metrics and figures of a run.

    The methods of the base class do nothing. Only process 0 has trackers. An error in a tracker
    does not end the run, except in the method `start` of the tracker `jsonl`. The first error of
    each tracker is logged as a warning.

    Attributes:
        in_background: Whether a background thread calls the methods, so that training does not wait
            for them. When a run resumes, the thread calls `start`, and then `metrics` and `figure`
            with all stored values, so that the tracker can add missing values.
    """

    in_background: ClassVar[bool] = False

    def start(self, step: int) -> None:
        """Start tracking after ``step``: 0 for a new run, or the step from which the run resumes.

        A rollback to an earlier step calls this method again with that step. After a rollback, the
        run passes the metrics of the repeated steps a second time.
        """

    def hyperparameters(self, config: dict[str, Any]) -> None:
        """Track the configuration of the run, a nested dict."""

    def environment(self, facts: dict[str, Any]) -> None:
        """Track the environment of this process: commit, versions, devices and the command."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Track the metrics of a step. Several calls can pass metrics of the same step."""

    def figure(self, step: int, name: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Track a figure of a step."""

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """Track a table, which replaces earlier tables of the same name."""

    def checkpoint(self, step: int, path: str) -> None:
        """Track the path of a step's checkpoint."""

    def outcome(self, outcome: Outcome) -> None:
        """Track the end of the run: ``finished`` at its last step, ``stopped`` by a signal, or
        ``failed`` by an error."""

    def finish(self) -> None:
        """Write pending data. The run calls this method at its end, even after an error."""


TrackerFactory = Callable[[epath.Path], Tracker]
TRACKERS: Registry[TrackerFactory] = Registry("tracker")
"""The registry of trackers: functions or classes that take the run directory and return a
tracker."""


def selected(names: Collection[str]) -> dict[str, TrackerFactory]:
    """Return the factories of a run's trackers by name.

    The result holds `jsonl`, the trackers in ``names``, and all trackers that a user's modules
    have registered.

    Args:
        names: The names of trackers, from ``config.trackers``.
    """
    chosen = {"jsonl", *names}
    return {
        name: factory
        for name, factory in TRACKERS.items()
        if name in chosen or name not in BUILT_IN
    }


def check_trackers(names: Collection[str]) -> None:
    """Check that trackers exist and that their client libraries are installed.

    Raises:
        UserError: A tracker does not exist, or its client is not installed. For a missing client,
            the message contains the install command.
    """
    for name in names:
        try:
            TRACKERS.get(name)
        except UserError as error:
            raise UserError(f"config.trackers: {error}") from None
        if name not in EXTRAS:
            continue
        # Clients write to folders of their names. Python finds such a folder as a package, too, but
        # without an origin.
        client = importlib.util.find_spec(name)
        if client is None or client.origin is None:
            raise UserError(
                f"config.trackers={name}: the client library is not installed: "
                f"{install_command(name)}"
            )


def stored_id(workdir: epath.Path, name: str) -> str | None:
    """Return the identifier that a run directory stores for a tracker, or None."""
    identifier = _stored_ids(workdir).get(name)
    return identifier if isinstance(identifier, str) else None


def store_id(workdir: epath.Path, name: str, identifier: str) -> None:
    """Store the identifier of a tracker's run in the run directory, so that a resume can continue
    the tracker's run."""
    values = _stored_ids(workdir) | {name: identifier}
    replace_text(workdir / IDS, json.dumps(values, indent=2) + "\n")


def _stored_ids(workdir: epath.Path) -> dict[str, Any]:
    """Return the content of ``trackers.json``, or {} if the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        values = json.loads((workdir / IDS).read_text())
        if isinstance(values, dict):
            return values
    return {}


def run_id(workdir: epath.Path) -> str:
    """Return the random identifier of a run, which the first call stores in the run directory."""
    if (identifier := stored_id(workdir, "run")) is None:
        identifier = uuid.uuid4().hex[:24]
        store_id(workdir, "run", identifier)
    return identifier
