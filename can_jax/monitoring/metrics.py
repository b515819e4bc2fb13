"""The metrics of a run, as JSON lines and TensorBoard events. No other module writes metrics."""

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Float, UInt8

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
    """Fetch the metrics of a step to the host; the Gram matrix becomes its effective rank."""
    host = dict(jax.device_get(metrics))
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


class MetricWriter:
    """A writer of `metrics.jsonl` and of TensorBoard events; only process 0 writes.

    Nothing is written before `truncate_after` sets the step from which the run starts or resumes.
    If the disk is full, lines wait in memory until there is space, and events are lost.

    Args:
        workdir: The run directory.
    """

    def __init__(self, workdir: epath.Path):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._workdir, self._path = workdir, workdir / "metrics.jsonl"
        self._waiting, self._warned = b"", False
        self._lines: Any = None
        self._summary: Any = None
        self._events: Any = None

    def truncate_after(self, step: int) -> None:
        """Drop the metrics beyond a step, since those steps are repeated, and incomplete lines.

        Dropped lines are appended to ``metrics_dropped.jsonl``.
        """
        if not self._active:
            return
        if self._lines:
            self._flush()
            self._lines.close()
        self._drop(step)
        if "://" in str(self._path):
            self._lines = self._path.open("ab")
        else:  # unbuffered, so that `write` returns how many bytes were written
            self._lines = open(self._path, "ab", buffering=0)  # noqa: SIM115
        with self._room():
            self._open_events(step)

    def _open_events(self, step: int) -> None:
        """Open a new event file, which makes TensorBoard drop the events beyond a step."""
        folder = self._workdir / "tensorboard"
        if self._events:
            self._events.close()
        if folder.exists():
            write_restart(folder, step)
        # clu's writer does the same, but imports Keras, which takes 5 s at every start.
        self._summary = tensorflow().summary
        self._events = self._summary.create_file_writer(str(folder))

    def _drop(self, step: int) -> None:
        """Move malformed lines and those beyond a step to ``metrics_dropped.jsonl``.

        At step 0 all lines are moved, since a run that restarts repeats its first evaluation, too.
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

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step as one line of JSON; NaN and infinity become null."""
        if not self._active:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._waiting += (json.dumps({"step": step} | finite) + "\n").encode()
        self._flush()
        with self._room(), self._events.as_default(step):
            for name, value in values.items():
                self._summary.scalar(name, value)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Write an image for TensorBoard."""
        if self._active:
            with self._room(), self._events.as_default(step):
                self._summary.image(name, image[None])
                self._events.flush()

    def close(self) -> None:
        """Flush and close the files."""
        if self._active and self._lines:
            self._flush()
            self._lines.close()
            with self._room():
                self._events.flush()
                self._events.close()

    def _flush(self) -> None:
        """Write the pending lines, as far as there is space."""
        with self._room():
            while self._waiting:
                taken = self._lines.write(self._waiting)  # bytes; None from a bucket's file
                self._waiting = b"" if taken is None else self._waiting[taken:]
            self._lines.flush()

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """Log the first error of a write in the body as a warning, and suppress all of them.

        A run continues without its metrics.
        """
        try:
            yield
        except Exception as error:  # of the system or TensorFlow
            if not self._warned:
                logging.warning(
                    "metrics of %s cannot be written: %s", self._workdir, one_line(error)
                )
            self._warned = True
