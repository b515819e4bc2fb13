"""The metrics of a run, as JSON lines and TensorBoard events. No other module writes metrics."""

import contextlib
import json
import math
import os
import socket
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Float, UInt8

from can_jax.monitoring.trackers import TRACKERS, Tracker
from can_jax.utils.errors import one_line
from can_jax.utils.files import json_lines, replace_bytes
from can_jax.utils.tensorflow import tensorflow


def effective_rank(gram: Float[np.ndarray, "width width"]) -> float:
    """Return the effective rank of embeddings: the exponential of the entropy of singular values.

    The values are normalized to sum to 1 (Roy and Vetterli, 2007; RankMe, arXiv 2210.02885).

    Args:
        gram: ``E.T @ E`` of the embeddings ``E``, up to a factor; its eigenvalues are the squared
            singular values.
    """
    if not np.isfinite(gram).all():
        return math.nan
    values = np.sqrt(np.clip(np.linalg.eigvalsh(gram.astype(np.float64)), 0.0, None))
    shares = values / max(values.sum(), 1e-30)
    return float(np.exp(-np.sum(shares * np.log(np.maximum(shares, 1e-30)))))


def to_scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """Fetch the metrics of a step to the host, and derive those that are no means over rows.

    The Gram matrix becomes its effective rank. ``denoising/explained`` is the share of the noise's
    energy that the prediction explains: 1 for a perfect one, 0 for zeros, less for a worse one.
    """
    host = dict(jax.device_get(metrics))
    if energy := host.get("denoising/energy"):
        host["denoising/explained"] = 1 - host["denoising/residual"] / energy
    if "embedding/gram" in host:
        host["embedding/effective_rank"] = effective_rank(host.pop("embedding/gram"))
    return {name: float(value) for name, value in host.items()}


def read_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
    """Return the valid lines of a run's ``metrics.jsonl``, none without the file."""
    return [record for _, record in _lines(workdir / "metrics.jsonl") if record is not None]


def _lines(path: epath.Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield each line with its record; None for one that is malformed or has no step."""
    for line, record in json_lines(path):
        yield line, record if record and isinstance(record.get("step"), int) else None


def write_restart(folder: epath.Path, step: int) -> None:
    """Write an event that makes TensorBoard drop earlier events after a step.

    Args:
        folder: The folder of the event files.
        step: The last step whose events are kept.
    """
    tf = tensorflow()
    # TensorBoard reads the files of a folder in the order of their names, which begin with the time
    # in seconds. The name of this file sorts after all others, and before the next of this process.
    stem, now = "events.out.tfevents.", time.time()
    if any(path.name.startswith(f"{stem}{int(now):010d}") for path in folder.iterdir()):
        time.sleep(1 - now % 1)
        now = time.time()
    name = f"{stem}{int(now):010d}.{socket.gethostname()}.{os.getpid()}.-restart"
    version = tf.compat.v1.Event(wall_time=now, file_version="brain.Event:2")
    start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    restart = tf.compat.v1.Event(wall_time=now, step=step + 1, session_log=start)
    with tf.io.TFRecordWriter(str(folder / name)) as file:
        # TensorBoard takes the first restart of a run for its beginning, so there are two.
        for event in (version, restart, restart):
            file.write(event.SerializeToString())


class JsonLines(Tracker):
    """The tracker that writes `metrics.jsonl`, which the run itself reads, too.

    If the disk is full, lines wait in memory until there is space.

    Args:
        workdir: The run directory.
    """

    def __init__(self, workdir: epath.Path):
        self._path = workdir / "metrics.jsonl"
        self._waiting = b""
        self._lines: Any = None

    def start(self, step: int) -> None:
        """Drop incomplete lines, and metrics beyond a step, since those steps are repeated.

        Dropped lines are appended to ``metrics_dropped.jsonl``.

        Raises:
            OSError: The files cannot be written.
        """
        if self._lines:
            with contextlib.suppress(OSError):
                self._flush()
            self._lines.close()
        self._drop(step)
        if "://" in str(self._path):
            self._lines = self._path.open("ab")
        else:  # unbuffered, so that `write` returns how many bytes were written
            self._lines = open(self._path, "ab", buffering=0)  # noqa: SIM115

    def _drop(self, step: int) -> None:
        """Move malformed lines and those beyond a step to ``metrics_dropped.jsonl``.

        If the run starts again from step 0, all lines are moved, since the evaluation before the
        first step is repeated.
        """
        kept: list[bytes] = []
        dropped: list[bytes] = []
        for line, record in _lines(self._path):
            stays = record is not None and 0 < step >= record["step"]
            (kept if stays else dropped).append(line)
        if dropped:
            beside = self._path.with_name("metrics_dropped.jsonl")
            before = beside.read_bytes() if beside.exists() else b""
            replace_bytes(beside, before + b"".join(line + b"\n" for line in dropped))
            replace_bytes(self._path, b"".join(line + b"\n" for line in kept))

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step as one line of JSON; NaN and infinity become null."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._waiting += (json.dumps({"step": step} | finite) + "\n").encode()
        self._flush()

    def finish(self) -> None:
        """Write the pending lines and close the file."""
        if self._lines:
            try:
                self._flush()
            finally:
                self._lines.close()

    def _flush(self) -> None:
        """Write the pending lines, as far as there is space."""
        while self._waiting:
            taken = self._lines.write(self._waiting)  # bytes; None from a bucket's file
            self._waiting = b"" if taken is None else self._waiting[taken:]
        self._lines.flush()


class TensorBoard(Tracker):
    """The tracker that writes event files for TensorBoard.

    Args:
        workdir: The run directory; the event files are in its folder ``tensorboard``.
    """

    def __init__(self, workdir: epath.Path):
        self._folder = workdir / "tensorboard"
        self._summary: Any = None
        self._events: Any = None

    def start(self, step: int) -> None:
        """Open a new event file, which makes TensorBoard drop the events beyond a step."""
        if self._events:
            self._events.close()
        if self._folder.exists():
            write_restart(self._folder, step)
        # clu's writer does the same, but imports Keras, which takes 5 s at every start.
        self._summary = tensorflow().summary
        self._events = self._summary.create_file_writer(str(self._folder))

    def hyperparameters(self, config: dict[str, Any]) -> None:
        """Write the configuration as text, one line for each key."""
        text = json.dumps(config, indent=2, sort_keys=True, default=str)
        with self._events.as_default(0):
            self._summary.text("config", textwrap.indent(text, "    "))  # code in Markdown

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step."""
        with self._events.as_default(step):
            for name, value in values.items():
                self._summary.scalar(name, value)

    def figure(self, step: int, name: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Write a figure at once, since the next one may be far away."""
        with self._events.as_default(step):
            self._summary.image(name, image[None])
            self._events.flush()

    def finish(self) -> None:
        """Flush and close the event file."""
        if self._events:
            self._events.flush()
            self._events.close()


TRACKERS.register("jsonl", JsonLines)
TRACKERS.register("tensorboard", TensorBoard)


class MetricWriter:
    """A writer of a run's metrics to all `TRACKERS`; only process 0 has any.

    Nothing is written before `truncate_after` sets the step from which the run starts or resumes.
    If a tracker fails, the first error is logged as a warning, and the run continues.

    Args:
        workdir: The run directory.
    """

    def __init__(self, workdir: epath.Path):
        self._workdir = workdir
        self._trackers: dict[str, Tracker] = {}
        self._failed: set[str] = set()
        self._started = False
        if jax.process_index() == 0:
            self._trackers = {name: factory(workdir) for name, factory in TRACKERS.items()}

    def truncate_after(self, step: int) -> None:
        """Drop the metrics beyond a step, since those steps are repeated.

        Raises:
            OSError: `metrics.jsonl`, which the run itself reads, cannot be written.
        """
        self._started = True
        if lines := self._trackers.get("jsonl"):
            lines.start(step)
        for name, tracker in self._trackers.items():
            if tracker is not lines:
                self._attempt(name, tracker.start, step)

    def hyperparameters(self, config: dict[str, Any]) -> None:
        """Write the configuration of the run, a nested dict."""
        for name, tracker in self._trackers.items():
            self._attempt(name, tracker.hyperparameters, config)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write the metrics of a step."""
        for name, tracker in self._trackers.items():
            self._attempt(name, tracker.metrics, step, values)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Write a figure of a step."""
        for tracker_name, tracker in self._trackers.items():
            self._attempt(tracker_name, tracker.figure, step, name, image)

    def close(self) -> None:
        """Finish all trackers."""
        for name, tracker in self._trackers.items() if self._started else ():
            self._attempt(name, tracker.finish)

    def _attempt(self, name: str, call: Callable[..., object], *arguments: Any) -> None:
        """Call a method of a tracker; the first error of each tracker is logged as a warning."""
        try:
            call(*arguments)
        except Exception as error:  # of the system, TensorFlow or a user's tracker
            if name not in self._failed:
                logging.warning(
                    "metrics of %s cannot be written by the tracker %s: %s",
                    self._workdir, name, one_line(error),
                )  # fmt: skip
            self._failed.add(name)
