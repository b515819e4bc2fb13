"""Reading and writing of `metrics.jsonl`, which stores the metrics of a run as JSON lines."""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from can_jax.monitoring.trackers import Tracker
from can_jax.utils.files import json_lines, replace_bytes

ELAPSED = "elapsed_seconds"
CLOCK = ("time", ELAPSED)  # the fields of a line that are no metrics, besides its step


def read_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
    """Return the valid records of a run's ``metrics.jsonl``, or [] if there is no file."""
    return [record for _, record in _lines(workdir / "metrics.jsonl") if record is not None]


def finite_or_none(values: dict[str, float]) -> dict[str, float | None]:
    """Return the values, with NaN and infinity replaced by None, since JSON cannot represent
    them."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _lines(path: epath.Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield each line and its record, which is None if the line is malformed or has no step."""
    for line, record in json_lines(path):
        yield line, record if record and isinstance(record.get("step"), int) else None


class JsonLines(Tracker):
    """The tracker that writes `metrics.jsonl`, which run reports and resumed runs read.

    Each line of the file has the step, the date and time, the seconds since the run began, and the
    metrics. The elapsed seconds exclude the time between a stop and the resume. Lines that cannot
    be written, for example because the disk is full, stay in memory and are written with the next
    line.

    Args:
        workdir: The run directory.
    """

    def __init__(self, workdir: epath.Path):
        self._path = workdir / "metrics.jsonl"
        self._waiting = b""
        self._lines: Any = None
        self._began = time.monotonic()

    def start(self, step: int) -> None:
        """Open ``metrics.jsonl``, and remove malformed lines and the lines of steps to be repeated.

        Removed lines are appended to ``metrics_dropped.jsonl``.

        Raises:
            OSError: ``metrics.jsonl`` or ``metrics_dropped.jsonl`` cannot be written.
        """
        if self._lines:
            with contextlib.suppress(OSError):
                self._flush()
            self._lines.close()
            self._drop(step)
        else:
            self._began -= self._drop(step)
        if "://" in str(self._path):
            self._lines = self._path.open("ab")
        else:  # unbuffered, so that `write` returns how many bytes were written
            self._lines = open(self._path, "ab", buffering=0)  # noqa: SIM115

    def _drop(self, step: int) -> float:
        """Move malformed lines, and the lines of steps after ``step``, to
        ``metrics_dropped.jsonl``.

        If ``step`` is 0, no lines remain in ``metrics.jsonl``: the run repeats even the evaluation
        before the first step.

        Returns:
            The elapsed seconds of the last remaining line, or 0 if none remains.
        """
        elapsed = 0.0
        kept: list[bytes] = []
        dropped: list[bytes] = []
        for line, record in _lines(self._path):
            if record is None or step == 0 or record["step"] > step:
                dropped.append(line)
                continue
            kept.append(line)
            if isinstance(seconds := record.get(ELAPSED), int | float):
                elapsed = float(seconds)
        if dropped:
            beside = self._path.with_name("metrics_dropped.jsonl")
            before = beside.read_bytes() if beside.exists() else b""
            replace_bytes(beside, before + b"".join(line + b"\n" for line in dropped))
            replace_bytes(self._path, b"".join(line + b"\n" for line in kept))
        return elapsed

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Write the metrics of a step as one line of JSON. NaN and infinity become null."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        elapsed = round(time.monotonic() - self._began, 1)
        clock = dict(zip(CLOCK, (moment, elapsed), strict=True))
        line = {"step": step} | clock | finite_or_none(values)
        self._waiting += (json.dumps(line) + "\n").encode()
        self._flush()

    def finish(self) -> None:
        """Write the pending lines and close the file."""
        if self._lines:
            try:
                self._flush()
            finally:
                self._lines.close()

    def _flush(self) -> None:
        """Write the pending lines. After an `OSError` the unwritten bytes remain pending."""
        while self._waiting:
            taken = self._lines.write(self._waiting)  # bytes; None from a bucket's file
            self._waiting = b"" if taken is None else self._waiting[taken:]
        self._lines.flush()
