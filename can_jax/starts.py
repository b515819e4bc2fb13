"""The history of a run's starts, in `starts.jsonl` of the run directory, a line each."""

import json
import os
import socket
import sys
import time
from typing import Any

from absl import logging
from etils import epath

from can_jax.errors import one_line
from can_jax.files import json_lines, replace_bytes

STARTS = "starts.jsonl"


def append_start(workdir: epath.Path, step: int, config: str, facts: dict[str, Any]) -> None:
    """Append a start to the history.

    Args:
        workdir: The run directory.
        step: The step from which the run begins or resumes.
        config: The configuration as JSON. It is stored where it differs from the start before.
        facts: The environment: versions, commit, devices.

    Raises:
        OSError: The run directory cannot be written.
    """
    before = read_starts(workdir)
    record = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "command": sys.argv,
        "step": step,
        "environment": facts,
    }
    values = json.loads(config)
    if _latest_config(before) != values:
        record["config"] = values
    lines = "".join(json.dumps(line) + "\n" for line in [*before, record])
    replace_bytes(workdir / STARTS, lines.encode())


def read_starts(workdir: epath.Path) -> list[dict[str, Any]]:
    """Return the starts of a run in order; none for a run without a history.

    Lines that are damaged are left out: the history only shows what happened.
    """
    return [record for _, record in json_lines(workdir / STARTS) if record is not None]


def first_config(workdir: epath.Path) -> dict[str, Any] | None:
    """Return the configuration of a run's first start; None for a run without a history.

    A start from step 0 begins a new run: the ones before it saved nothing.
    """
    first = current = None
    for start in read_starts(workdir):
        current = start.get("config", current)
        if start.get("step") == 0 or first is None:
            first = current
    return first


def stored_config(workdir: epath.Path) -> str | None:
    """Return the text of a run's configuration; None for a new run.

    Where ``config.json`` is damaged, as by a full disk or a hand, that of the last start is taken.
    """
    place = workdir / "config.json"
    if not place.exists():
        return None
    text = place.read_bytes().decode(errors="replace")
    try:
        json.loads(text)
    except ValueError as error:
        latest = _latest_config(read_starts(workdir))
        if latest is not None:
            logging.warning("%s: %s; that of the last start is taken", place, one_line(error))
            return json.dumps(latest)
    return text


def _latest_config(starts: list[dict[str, Any]]) -> Any:
    return next((start["config"] for start in reversed(starts) if "config" in start), None)
