"""The tracker that writes event files for TensorBoard."""

import json
import os
import socket
import textwrap
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from can_jax.monitoring.trackers import Tracker
from can_jax.utils.nested import flatten
from can_jax.utils.tensorflow import tensorflow

COMPARED = ("loss/total", "probe/knn")  # metrics in the tab HParams


def write_restart(folder: epath.Path, step: int) -> None:
    """Write an event file that makes TensorBoard ignore the existing events of steps after
    ``step``.

    Args:
        folder: The folder of the event files.
        step: The last step whose events TensorBoard still shows.
    """
    tf = tensorflow()
    # TensorBoard reads the files of a folder in the order of their names, which begin with the time
    # in seconds. The name of this file sorts after those of all existing files, and before that of
    # the event file that this process opens next.
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


class TensorBoard(Tracker):
    """The tracker that writes event files for TensorBoard.

    Args:
        workdir: The run directory, in whose folder ``tensorboard`` the event files are written.
    """

    def __init__(self, workdir: epath.Path):
        self._folder = workdir / "tensorboard"
        self._summary: Any = None
        self._events: Any = None

    def start(self, step: int) -> None:
        """Open a new event file. TensorBoard then ignores events after ``step`` in older files."""
        if self._events:
            self._events.close()
        if self._folder.exists():
            write_restart(self._folder, step)
        # clu's writer does the same, but imports Keras, which takes 5 s at every start.
        self._summary = tensorflow().summary
        self._events = self._summary.create_file_writer(str(self._folder))

    def hyperparameters(self, config: dict[str, Any]) -> None:
        """Write the configuration as text, and as hyperparameters for TensorBoard's HParams tab."""
        self._text("config", _code(config))
        # Imported here, since TensorBoard is no part of an installation without extras.
        from tensorboard.plugins.hparams import summary_v2 as hparams

        values = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in flatten(config).items()
        }
        keys = [hparams.HParam(key) for key in values]
        metrics = [hparams.Metric(name) for name in COMPARED]
        write = self._summary.experimental.write_raw_pb
        with self._events.as_default(0):
            write(hparams.hparams_config_pb(keys, metrics).SerializeToString(), 0)
            # The name of the run, which would otherwise be a hash of all values.
            session = hparams.hparams_pb(values, trial_id=self._folder.parent.name)
            write(session.SerializeToString(), 0)

    def environment(self, facts: dict[str, Any]) -> None:
        """Write the commit, versions and devices as text."""
        self._text("environment", _code(facts))

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Write the metrics of a step as scalars."""
        with self._events.as_default(step):
            for name, value in values.items():
                self._summary.scalar(name, value)

    def figure(self, step: int, name: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Write a figure and flush the event file, so that the figure is visible at once."""
        with self._events.as_default(step):
            self._summary.image(name, image[None])
            self._events.flush()

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """Write a table as text in Markdown."""
        lines = [columns, ["---"] * len(columns), *rows]
        cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
        self._text(f"tables/{name}", "\n".join(f"| {' | '.join(line)} |" for line in cells), step)

    def checkpoint(self, step: int, path: str) -> None:
        """Write the path of a checkpoint as text."""
        self._text("checkpoint", path, step)

    def finish(self) -> None:
        """Flush and close the event file."""
        if self._events:
            self._events.flush()
            self._events.close()

    def _text(self, name: str, text: str, step: int = 0) -> None:
        """Write a text in Markdown."""
        with self._events.as_default(step):
            self._summary.text(name, text)


def _code(values: dict[str, Any]) -> str:
    """Return values as JSON, formatted as a code block in Markdown."""
    text = json.dumps(values, indent=2, sort_keys=True, default=str)
    return textwrap.indent(text, "    ")
