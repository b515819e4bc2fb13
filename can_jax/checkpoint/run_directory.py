"""The files of a run directory: the configuration of each start, and the latest checkpoint.

`starts.jsonl` has one line for each start.
"""

import contextlib
import json
import os
import socket
import sys
import time
from typing import Any

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from can_jax.checkpoint.manager import Checkpointer
from can_jax.config.resolve import from_json, resolve_encoder
from can_jax.utils.errors import UserError, one_line, reason_of
from can_jax.utils.files import json_lines, replace_bytes

STARTS = "starts.jsonl"
CHECKPOINTS = "checkpoints"


def append_start(workdir: epath.Path, step: int, config: str, facts: dict[str, Any]) -> None:
    """Append a start to the history.

    Args:
        workdir: The run directory.
        step: The step from which the run starts or resumes.
        config: The configuration as JSON, stored if it differs from that of the previous start.
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
    """Return the starts of a run in order; an empty list for a run without a history.

    Damaged lines are skipped, so that they do not prevent a start.
    """
    return [record for _, record in json_lines(workdir / STARTS) if record is not None]


def first_config(workdir: epath.Path) -> dict[str, Any] | None:
    """Return the configuration of a run's first start, or None for a run without a history.

    A start from step 0 begins a new run, since earlier starts saved nothing.
    """
    first = current = None
    for start in read_starts(workdir):
        current = start.get("config", current)
        if start.get("step") == 0 or first is None:
            first = current
    return first


def stored_config(workdir: epath.Path) -> str | None:
    """Return the text of a run's configuration, or None for a new run.

    If ``config.json`` is damaged, for example by a full disk or an editor, return the configuration
    of the last start in the history, if there is one.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    text = path.read_bytes().decode(errors="replace")
    try:
        json.loads(text)
    except ValueError as error:
        latest = _latest_config(read_starts(workdir))
        if latest is not None:
            logging.warning(
                "%s: %s; the configuration of the last start is used", path, one_line(error)
            )
            return json.dumps(latest)
    return text


def _latest_config(starts: list[dict[str, Any]]) -> Any:
    """Return the configuration of the last start that stored one, or None."""
    return next((start["config"] for start in reversed(starts) if "config" in start), None)


def read_config(folder: epath.Path) -> ConfigDict:
    """Return the configuration of a run directory or of the dump of a failed step.

    Raises:
        UserError: The configuration is missing or cannot be read.
    """
    try:
        return from_json((folder / "config.json").read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{folder} is not a run directory: it has no config.json") from error
    except OSError as error:
        raise UserError(f"{folder}/config.json cannot be read: {reason_of(error)}") from error
    except (UserError, ValueError, RecursionError) as error:
        raise UserError(f"{folder}/config.json cannot be read: {one_line(error)}") from error


def read_encoder(folder: epath.Path) -> ConfigDict:
    """Return the configuration of a run directory, with the encoder's settings checked.

    Raises:
        UserError: The configuration cannot be read, or its encoder is invalid in this version.
    """
    config = read_config(folder)
    try:
        return resolve_encoder(config)
    except UserError as error:
        raise UserError(f"{folder}/config.json: {error}") from error


def read_run(folder: epath.Path) -> ConfigDict:
    """Return the configuration of a pretraining run, with the encoder's settings checked.

    Raises:
        UserError: The run directory is that of a fine-tuned classifier, or its configuration cannot
            be read.
    """
    if (folder / "classifier.json").exists():
        raise UserError(f"{folder} is a fine-tuned classifier; give the run of its encoder")
    return read_encoder(folder)


def newest_state(
    workdir: epath.Path,
    abstract: Any,
    folder: str = "checkpoints",
    *,
    step: int | None = None,
    partial: bool = False,
) -> tuple[int, Any]:
    """Return the step and the state of a run's latest valid checkpoint, without changing the run.

    Args:
        workdir: The run directory.
        abstract: The state as shapes and types, with the shardings to restore to.
        folder: The folder of the checkpoints in the run directory.
        step: The step whose checkpoint is restored instead of the latest one.
        partial: Whether ``abstract`` is a part of the state, the rest of which is not read.

    Raises:
        UserError: There is no checkpoint of ``step``, or none that is valid and fits ``abstract``.
    """
    checkpoints = Checkpointer(workdir / folder, keep_last=None, read_only=True)
    with contextlib.closing(checkpoints):
        if step is None:
            newest = checkpoints.latest_valid_step()
            if newest is None:
                raise UserError(f"{workdir} holds no checkpoint; give a run that has saved one")
        else:
            checkpoints.check_step(step)
            newest = step
        restored, state, _ = checkpoints.restore(newest, abstract, partial=partial)
    if step not in (None, restored):
        raise UserError(
            f"the checkpoint of step {step} in {workdir} belongs to another model than its "
            "config.json; give another step"
        )
    return restored, state


def step_path(checkpoint: str, step: int | None) -> str:
    """Return the path of a step's checkpoint in a run directory; for no step, the path as given.

    Functions that open a run accept both paths; see `split_step`.

    Raises:
        UserError: A step is given with a path that is not a run directory.
    """
    if step is None:
        return checkpoint
    if not (epath.Path(checkpoint) / CHECKPOINTS).is_dir():
        raise UserError(
            f"step={step}: {checkpoint} is not a run directory, which steps need; leave out the "
            "step, or give a run directory"
        )
    return f"{checkpoint.rstrip('/')}/{CHECKPOINTS}/{step}"


def split_step(path: epath.Path) -> tuple[epath.Path, int | None]:
    """Split the path of a checkpoint, ``RUN/checkpoints/STEP``, into run directory and step.

    Any other path is returned with None, which stands for the latest valid checkpoint.
    """
    run = path.parent.parent
    if path.parent.name == CHECKPOINTS and path.name.isdigit() and (run / "config.json").exists():
        return run, int(path.name)
    return path, None
