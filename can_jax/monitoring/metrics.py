"""The writer that passes the metrics of a run to all trackers."""

import math
import time
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import UInt8

from can_jax.data.decoding.open_image import open_image
from can_jax.monitoring.aim import Aim
from can_jax.monitoring.background import Lane
from can_jax.monitoring.figures import FIGURE, figures_by_step
from can_jax.monitoring.jsonl import CLOCK, JsonLines, read_metrics
from can_jax.monitoring.mlflow import MLflow
from can_jax.monitoring.tensorboard import TensorBoard
from can_jax.monitoring.trackers import TRACKERS, Outcome, Tracker, TrackerFactory, selected
from can_jax.monitoring.wandb import WandB
from can_jax.utils.errors import Preempted, one_line
from can_jax.utils.progress import phase

FINISH_SECONDS = 60.0  # the time at the end of a run to wait for the background threads

TRACKERS.register("jsonl", JsonLines)
TRACKERS.register("tensorboard", TensorBoard)
TRACKERS.register("wandb", WandB)
TRACKERS.register("mlflow", MLflow)
TRACKERS.register("aim", Aim)


class MetricWriter:
    """A writer that passes the metrics of a run to the run's trackers, on process 0 only.

    Call `truncate_after`, which starts the trackers, before any other method. An error in a tracker
    does not end the run, unless the error occurs while `metrics.jsonl` is opened. The first error
    of each tracker is logged as a warning.

    As a context manager, the writer also reports to the trackers how the run ended.

    Args:
        workdir: The run directory.
        names: The names of the trackers, from ``config.trackers``.
    """

    def __init__(self, workdir: epath.Path, names: Collection[str] = ("tensorboard",)):
        self._workdir = workdir
        self._trackers: dict[str, Tracker] = {}
        self._lanes: dict[str, Lane] = {}
        self._failed: set[str] = set()
        self._unusable: set[str] = set()
        self._started = False
        if jax.process_index() == 0:
            for name, factory in selected(names).items():
                self._attempt(name, self._create, name, factory)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stopped = isinstance(error, Preempted | KeyboardInterrupt)
        self.close("finished" if error is None else "stopped" if stopped else "failed")

    def truncate_after(self, step: int) -> None:
        """Start or restart the trackers, and drop metrics of steps that will be repeated.

        Raises:
            OSError: `metrics.jsonl` cannot be written. Errors of trackers other than `jsonl` are
                only logged.
        """
        first, self._started = not self._started, True
        if lines := self._trackers.get("jsonl"):
            lines.start(step)
        for name, tracker in self._trackers.items():
            if tracker is lines:
                continue
            if first and tracker.in_background:
                self._lanes[name] = Lane(name)
            self._call(name, "start", step)
            if first and name in self._lanes:
                self._lanes[name].put(self._attempt, name, self._replay, tracker, step)

    def hyperparameters(self, config: dict[str, Any]) -> None:
        """Pass the configuration of the run, a nested dict, to all trackers."""
        self._call_all("hyperparameters", config)

    def environment(self, facts: dict[str, Any]) -> None:
        """Pass the commit, versions and devices of this process to all trackers."""
        self._call_all("environment", facts)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Pass the metrics of a step to all trackers."""
        self._call_all("metrics", step, values)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Pass a figure of a step to all trackers."""
        self._call_all("figure", step, name, image)

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """Pass a table, whose cells are strings, to all trackers."""
        self._call_all("table", step, name, columns, rows)

    def checkpoint(self, step: int, path: epath.Path) -> None:
        """Pass the path of a step's checkpoint to all trackers."""
        self._call_all("checkpoint", step, str(path))

    def close(self, outcome: Outcome = "finished") -> None:
        """Finish all trackers. Blocks until the background threads of the trackers end, but at most
        for `FINISH_SECONDS`."""
        if not self._started:
            return
        self._started = False
        self._call_all("outcome", outcome)
        self._call_all("finish")
        end = time.monotonic() + FINISH_SECONDS
        for name, lane in self._lanes.items():
            with phase(f"finishing the tracker {name}"):
                if not lane.close(end - time.monotonic()):
                    logging.warning(
                        "the tracker %s did not finish within %.0f s and may lack the latest data, "
                        "which is stored in %s",
                        name, FINISH_SECONDS, self._workdir,
                    )  # fmt: skip

    def _create(self, name: str, factory: TrackerFactory) -> None:
        self._trackers[name] = factory(self._workdir)

    def _call_all(self, method: str, *arguments: Any) -> None:
        for name in self._trackers:
            self._call(name, method, *arguments)

    def _call(self, name: str, method: str, *arguments: Any) -> None:
        """Call a method of a tracker, in the background thread if the tracker has one."""
        call = getattr(self._trackers[name], method)
        if lane := self._lanes.get(name):
            if not lane.put(self._attempt, name, call, *arguments):
                self._warn(name, "the queue of the tracker's background thread is full")
        else:
            self._attempt(name, call, *arguments)

    def _attempt(self, name: str, call: Callable[..., object], *arguments: Any) -> None:
        """Call a method of a tracker. The first error of each tracker is logged as a warning."""
        if name in self._unusable:
            return
        try:
            call(*arguments)
        except Exception as error:  # of the system, TensorFlow, a client or a user's tracker
            self._warn(name, one_line(error))
            if name in self._lanes and call.__name__ == "start":
                self._unusable.add(name)

    def _warn(self, name: str, reason: str) -> None:
        if name not in self._failed:
            later = "; resuming the run sends the missing metrics" if name in self._lanes else ""
            logging.warning(
                "metrics of %s cannot be written by the tracker %s: %s%s",
                self._workdir, name, reason, later,
            )  # fmt: skip
        self._failed.add(name)

    def _replay(self, tracker: Tracker, step: int) -> None:
        """Pass a tracker the stored metrics and figures of all steps up to ``step``, in order."""
        lines: dict[int, list[dict[str, float]]] = {}
        for record in read_metrics(self._workdir):
            values = {
                name: math.nan if value is None else value
                for name, value in record.items()
                if name not in ("step", *CLOCK)
            }
            lines.setdefault(record["step"], []).append(values)
        figures = figures_by_step(self._workdir)
        for at in sorted(lines.keys() | figures.keys()):
            if at > step:
                break
            for values in lines.get(at, []):
                tracker.metrics(at, values)
            if at in figures:
                with open_image(figures[at].read_bytes()) as image:
                    tracker.figure(at, FIGURE, np.asarray(image.convert("RGB")))
