"""The tracker of Weights & Biases (optional extra `wandb`), online or offline.

The environment variables of Weights & Biases set the project (`can_jax` by default), the name of
the run and the mode, such as ``WANDB_MODE=offline``.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from can_jax.monitoring.trackers import Outcome, Tracker, run_id

# The format of the files of offline runs, which is that of LevelDB's log after 7 bytes.
BLOCK, FILE_HEADER, HEADER = 32768, 7, struct.Struct("<IHB")
FULL, LAST = 1, 4  # types of a record's last part


class WandB(Tracker):
    """The tracker that sends a run to Weights & Biases. A resume continues the same W&B run.

    W&B stores one row per step; a row that was sent cannot be changed. The tracker sends a row when
    it receives the values of another step. Steps that a resume or a rollback repeats are not sent
    again.

    Args:
        workdir: The run directory. The W&B client writes into the subfolder ``wandb`` of a local
            run directory.
    """

    in_background = True

    def __init__(self, workdir: epath.Path):
        self._workdir = workdir
        self._client: Any = None
        self._run: Any = None
        self._row: dict[str, Any] = {}
        self._tables: dict[str, Any] = {}  # sent with the next row
        self._step = self._next = 0  # the step of the row, and the first step that is not sent yet
        self._exit_code = 0

    def start(self, step: int) -> None:
        """Create or resume the W&B run. A second call, as after a rollback, does nothing."""
        if self._run:
            return
        import wandb

        self._client, identifier = wandb, run_id(self._workdir)
        # The user's environment variables take precedence over these.
        options = {
            "project": ("WANDB_PROJECT", "can_jax"),
            "name": ("WANDB_NAME", self._workdir.name),
        }
        given = {key: value for key, (name, value) in options.items() if name not in os.environ}
        if "://" not in str(self._workdir):
            given["dir"] = str(self._workdir)
        # The client would otherwise replace stdout, on which the run has its progress bar.
        console = {} if "WANDB_CONSOLE" in os.environ else {"console": "off"}
        settings = wandb.Settings(**console)
        self._run = wandb.init(id=identifier, resume="allow", settings=settings, **given)
        self._next = self._run.starting_step
        if self._run.offline and "dir" in given:
            pattern = f"wandb/offline-run-*-{identifier}/run-{identifier}.wandb"
            files = Path(given["dir"]).glob(pattern)
            self._next = max((last_row(path) for path in files), default=-1) + 1

    def hyperparameters(self, config: dict[str, Any]) -> None:
        """Send the configuration as the W&B configuration of the run."""
        self._run.config.update(config, allow_val_change=True)

    def environment(self, facts: dict[str, Any]) -> None:
        """Send the commit, versions and devices as the key `environment` of the configuration."""
        self._run.config.update({"environment": facts}, allow_val_change=True)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Add the metrics of a step to the row of the step."""
        self._at(step, values)

    def figure(self, step: int, name: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Add a figure to the row of a step."""
        self._at(step, {name: self._client.Image(image)})

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """Queue a table, which is sent with the next row."""
        table = self._client.Table(columns=list(columns), data=[list(row) for row in rows])
        self._tables[f"tables/{name}"] = table

    def checkpoint(self, step: int, path: str) -> None:
        """Send the path of the latest checkpoint as the summary value `checkpoint`."""
        self._run.summary["checkpoint"] = path

    def outcome(self, outcome: Outcome) -> None:
        """Set the exit code that `finish` sends. If a signal stopped the run, mark it as
        preempted."""
        if outcome == "stopped":
            self._run.mark_preempting()
        self._exit_code = int(outcome != "finished")

    def finish(self) -> None:
        """Send the last row and finish the W&B run. Blocks until the client has sent all data."""
        if self._run:
            self._send()
            self._run.finish(self._exit_code)

    def _at(self, step: int, values: dict[str, Any]) -> None:
        """Add values to the row of a step. If the open row belongs to another step, send the open
        row first."""
        if step != self._step:
            self._send()
            self._step = step
        if step >= self._next:
            self._row |= values

    def _send(self) -> None:
        """Send the open row together with the queued tables."""
        if self._row or self._tables:
            step = max(self._step, self._next)
            self._run.log(self._row | self._tables, step=step, commit=True)
            self._row, self._tables, self._next = {}, {}, step + 1


def last_row(path: Path) -> int:
    """Return the last step in the file of an offline run, or -1 if the file has no steps.

    A killed client may not have written all rows that it received.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    last = -1
    for content in records(path.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            last = max(last, record.history.step.num)
    return last


def records(data: bytes) -> Iterator[bytes]:
    """Yield the complete records in the bytes of an offline run's file."""
    at, parts = FILE_HEADER, b""
    while at + HEADER.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER.size:  # the rest of a block that holds no further header
            at += left
            continue
        _, length, kind = HEADER.unpack_from(data, at)
        at += HEADER.size
        if not kind or at + length > len(data):
            return
        parts += data[at : at + length]
        at += length
        if kind in (FULL, LAST):
            yield parts
            parts = b""
