"""The stored configurations, the start history and the checkpoints of a run directory.

The history `starts.jsonl` has one line for each start or resume of the run.
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
from can_jax.weights.shipped import shipped_names, shipped_or_same

STARTS = "starts.jsonl"
CHECKPOINTS = "checkpoints"


def append_start(workdir: epath.Path, step: int, config: str, facts: dict[str, Any]) -> None:
    """Append a record of this start to the history of the run.

    Args:
        workdir: The run directory.
        step: The step from which the run starts or resumes.
        config: The configuration as JSON text; stored if it differs from the last stored one.
        facts: The environment, such as package versions, commit and devices, as JSON values.

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
    """Return the records of a run's starts, oldest first; an empty list if there is no history.

    Lines that are not valid JSON are skipped, so they do not prevent a start.
    """
    return [record for _, record in json_lines(workdir / STARTS) if record is not None]


def first_config(workdir: epath.Path) -> dict[str, Any] | None:
    """Return the configuration of a run's first start, or None if there is no history.

    If a run has started from step 0 several times, the last of these starts counts, because the
    previous starts left no checkpoint.
    """
    first = current = None
    for start in read_starts(workdir):
        current = start.get("config", current)
        if start.get("step") == 0 or first is None:
            first = current
    return first


def stored_config(workdir: epath.Path) -> str | None:
    """Return the JSON text of a run's configuration, or None for a new run.

    If ``config.json`` is not valid JSON, return the last configuration in the history instead, or
    the damaged text if there is no history.
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
                "%s is damaged: %s; the configuration of the run's most recent start is used",
                path,
                one_line(error),
            )
            return json.dumps(latest)
    return text


def _latest_config(starts: list[dict[str, Any]]) -> Any:
    """Return the last configuration in a start history, or None if there is none."""
    return next((start["config"] for start in reversed(starts) if "config" in start), None)


def read_config(folder: epath.Path) -> ConfigDict:
    """Return the configuration stored in a run directory or in the dump of a failed step.

    Raises:
        UserError: ``config.json`` is missing or unreadable, is not valid JSON, or has unknown keys.
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
    """Return the configuration of a run directory, after checking the settings of the encoder.

    Raises:
        UserError: ``config.json`` cannot be read, or this version of can_jax cannot build the
            encoder.
    """
    config = read_config(folder)
    try:
        return resolve_encoder(config)
    except UserError as error:
        raise UserError(f"{folder}/config.json: {error}") from error


def read_run(folder: epath.Path) -> ConfigDict:
    """Return the configuration of a pretraining run, after checking the settings of the encoder.

    Raises:
        UserError: The run is a fine-tuned classifier, or its configuration cannot be read.
    """
    if (folder / "classifier.json").exists():
        raise UserError(f"{folder} is a fine-tuned classifier; give the pretraining run instead")
    return read_encoder(folder)


def newest_state(
    workdir: epath.Path,
    abstract: Any,
    folder: str = CHECKPOINTS,
    *,
    step: int | None = None,
    partial: bool = False,
) -> tuple[int, Any]:
    """Restore the latest valid checkpoint of a run in read-only mode; return its step and state.

    Args:
        workdir: The run directory.
        abstract: The state as a pytree of `jax.ShapeDtypeStruct` with shardings to restore to.
        folder: The name of the checkpoint folder in the run directory.
        step: The step to restore; None for the latest valid checkpoint.
        partial: Whether ``abstract`` is only a part of the saved state; the rest is not read.

    Raises:
        UserError: No checkpoint of ``step`` exists, or no valid checkpoint matches ``abstract``.
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
            f"the checkpoint of step {step} does not match the model in {workdir}/config.json; "
            "give another step"
        )
    return restored, state


def step_path(checkpoint: str, step: int | None) -> str:
    """Return the path ``RUN/checkpoints/STEP`` of a checkpoint; if ``step`` is None, return
    ``checkpoint``.

    Functions that open a run accept run directories and checkpoint paths; see `find_checkpoint`.

    Raises:
        UserError: A step is given, but the path is not a run directory.
    """
    if step is None:
        return checkpoint
    if not (epath.Path(checkpoint) / CHECKPOINTS).is_dir():
        raise UserError(
            f"step={step}: {checkpoint} is not a run directory, so it has no steps; omit the "
            "step, or give a run directory"
        )
    return f"{checkpoint.rstrip('/')}/{CHECKPOINTS}/{step}"


def find_checkpoint(checkpoint: str, setting: str = "") -> tuple[epath.Path, int | None]:
    """Return the path of a run directory or of weights, and the step of the checkpoint.

    Args:
        checkpoint: A run directory; the path ``RUN/checkpoints/STEP`` of a checkpoint; an export;
            a folder or file of weights; or the name of an encoder installed with the package.
        setting: The text that precedes ``checkpoint`` in the error message, such as a flag.

    Returns:
        The path of the run directory or of the weights, and the step. A step of None selects the
        latest valid checkpoint of a run.

    Raises:
        UserError: The path does not exist, and is not the name of an installed encoder.
    """
    path = shipped_or_same(epath.Path(checkpoint))
    run = path.parent.parent
    if path.parent.name == CHECKPOINTS and path.name.isdigit() and (run / "config.json").exists():
        return run, int(path.name)
    if not path.exists():
        names = ", ".join(shipped_names())
        hint = "" if "/" in checkpoint else f"; the installed encoders are: {names}"
        raise UserError(f"{setting}{checkpoint} does not exist{hint}")
    return path, None
