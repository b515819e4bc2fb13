"""Trackers: the receivers of a run's metrics, settings, figures, tables and checkpoints.

`config.trackers` selects the built-in ones. A user's module registers another one in `TRACKERS`;
every run of its process then has it, whether of pretraining or of fine-tuning.
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
    """A receiver of a run's metrics and figures; the methods of this base class do nothing.

    Only the main process has trackers. An error of a tracker is logged once and does not end the
    run.

    Attributes:
        in_background: Whether a thread calls the methods, so that the run never waits for them.
            At a resume, `start` is then followed by all earlier metrics and figures of the run, so
            that the tracker can add those that it lacks.
    """

    in_background: ClassVar[bool] = False

    def start(self, step: int) -> None:
        """Begin to track after a step: 0 for a new run, else the step from which the run resumes.

        It is called again after a rollback. Metrics of later steps will be logged once more.
        """

    def hyperparameters(self, config: dict[str, Any]) -> None:
        """Track the configuration of the run, a nested dict."""

    def environment(self, facts: dict[str, Any]) -> None:
        """Track the environment of this start: commit, versions, devices and the command."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Track the metrics of a step; several calls can be of one step."""

    def figure(self, step: int, name: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Track a figure of a step."""

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """Track a table, such as that of the parameters. A later one with its name replaces it."""

    def checkpoint(self, step: int, path: str) -> None:
        """Track the path of a step's checkpoint."""

    def outcome(self, outcome: Outcome) -> None:
        """Track how this start of the run ended: at its last step, by a signal, or by an error."""

    def finish(self) -> None:
        """Write pending data. It is called at the end of the run, even if the run failed."""


TrackerFactory = Callable[[epath.Path], Tracker]
TRACKERS: Registry[TrackerFactory] = Registry("tracker")
"""Functions or classes that return a tracker, given the run directory."""


def selected(names: Collection[str]) -> dict[str, TrackerFactory]:
    """Return the trackers of a run: JSON lines, those in ``names``, and those of a user's module.

    Args:
        names: The value of ``config.trackers``.
    """
    chosen = {"jsonl", *names}
    return {
        name: factory
        for name, factory in TRACKERS.items()
        if name in chosen or name not in BUILT_IN
    }


def check_trackers(names: Collection[str]) -> None:
    """Check that the trackers of a configuration exist and that their clients are installed.

    Raises:
        UserError: A tracker does not exist, or lacks its client; the message names the extra.
    """
    for name in names:
        try:
            TRACKERS.get(name)
        except UserError as error:
            raise UserError(f"config.trackers: {error}") from None
        # A folder with the client's name, as clients create them, is found as a package, too.
        if name not in EXTRAS:
            continue
        client = importlib.util.find_spec(name)
        if client is None or client.origin is None:
            raise UserError(
                f"config.trackers={name}: its client is not installed: {install_command(name)}"
            )


def stored_id(workdir: epath.Path, name: str) -> str | None:
    """Return the identifier that a run directory stores under a name, or None."""
    with contextlib.suppress(OSError, ValueError):
        values = json.loads((workdir / IDS).read_text())
        if isinstance(values, dict) and isinstance(values.get(name), str):
            return values[name]
    return None


def store_id(workdir: epath.Path, name: str, identifier: str) -> None:
    """Store an identifier in a run directory, by which a resume finds the run of a tracker."""
    values: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        values = json.loads((workdir / IDS).read_text())
    replace_text(workdir / IDS, json.dumps(values | {name: identifier}, indent=2) + "\n")


def run_id(workdir: epath.Path) -> str:
    """Return the identifier of a run, which its directory stores from its first start on."""
    if (known := stored_id(workdir, "run")) is None:
        known = uuid.uuid4().hex[:24]
        store_id(workdir, "run", known)
    return known
