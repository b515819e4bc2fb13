"""The tracker of Aim (optional extra `aim`).

The environment variable ``AIM_REPO`` sets the Aim repository, a folder or ``aim://HOST:PORT``. By
default, the tracker uses the Aim repository of the current directory.
"""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from can_jax.monitoring.trackers import Tracker, store_id, stored_id

NAME = "aim"  # under which the run directory stores Aim's hash of the run


class Aim(Tracker):
    """The tracker that writes a run to Aim. A resumed run continues the same Aim run.

    Args:
        workdir: The run directory, whose name becomes the name of the Aim run.
    """

    in_background = True

    def __init__(self, workdir: epath.Path):
        self._workdir = workdir
        self._client: Any = None
        self._run: Any = None
        self._present: set[tuple[str, int]] = set()  # the metrics and steps that need no replay

    def start(self, step: int) -> None:
        """Create or resume the Aim run. The values of a repeated step overwrite the earlier values
        of the step in Aim."""
        self._present.clear()
        if self._run:
            return
        import aim

        self._client, run_hash = aim, stored_id(self._workdir, NAME)
        options: dict[str, Any] = {"repo": os.environ.get("AIM_REPO"), "experiment": "can_jax"}
        # By default, Aim also logs the terminal, the use of processor and memory, and all
        # environment variables.
        options |= {"capture_terminal_logs": False, "log_system_params": False}
        options |= {"system_tracking_interval": None}
        if run_hash is not None:
            with contextlib.suppress(aim.sdk.errors.MissingRunError):
                # Forced, since a start that was killed leaves Aim's lock of the run behind.
                self._run = aim.Run(run_hash=run_hash, force_resume=True, **options)
        if self._run is None:
            self._run = aim.Run(**options)
            store_id(self._workdir, NAME, self._run.hash)
            self._run.name = self._workdir.name
        for series in self._run.metrics():
            steps, _ = series.data.items_list()
            self._present |= {(series.name, at) for at in steps if at <= step}

    def hyperparameters(self, config: dict[str, Any]) -> None:
        """Store the configuration in the Aim parameter `hparams`."""
        self._run["hparams"] = config

    def environment(self, facts: dict[str, Any]) -> None:
        """Store the commit, versions and devices in the Aim parameter `environment`."""
        self._run["environment"] = facts

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Write the metrics of a step. When a resume replays stored metrics, values that Aim
        already holds are skipped."""
        epoch = values.get("epoch")
        for name, value in values.items():
            if (name, step) not in self._present:
                at = {"step": step, "epoch": None if epoch is None else int(epoch)}
                self._run.track(float(value), name=name, **at)

    def figure(self, step: int, name: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Write a figure, which replaces an earlier figure of the same name and step."""
        self._run.track(self._client.Image(image), name=name, step=step)

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """Store a table under its name in the Aim parameter `tables`."""
        self._run["tables", name] = {"columns": list(columns), "rows": [list(row) for row in rows]}

    def checkpoint(self, step: int, path: str) -> None:
        """Store the path of the latest checkpoint in the Aim parameter `checkpoint`."""
        self._run["checkpoint"] = path

    def finish(self) -> None:
        """Close the run."""
        if self._run:
            self._run.close()
