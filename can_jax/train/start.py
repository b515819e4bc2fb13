"""The start of a run: its directory, its checkpoints and its initial or restored state."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import jax
from clu import parameter_overview
from etils import epath
from ml_collections import ConfigDict

from can_jax.checkpoint.lock import RunLock
from can_jax.checkpoint.manager import Checkpointer
from can_jax.checkpoint.resume import check_stream, to_store
from can_jax.checkpoint.run_directory import (
    CHECKPOINTS,
    append_start,
    first_config,
    stored_config,
)
from can_jax.config.resolve import from_json, to_json
from can_jax.distributed.runtime import barrier
from can_jax.monitoring import console
from can_jax.monitoring.watchdog import section
from can_jax.train.loop import Progress
from can_jax.train.run_length import RunLength
from can_jax.train.step import TrainState, initialize
from can_jax.train.training import Training
from can_jax.utils.errors import UserError, reason_of
from can_jax.utils.files import replace_text
from can_jax.utils.nested import flatten


def open_checkpoints(config: ConfigDict, workdir: epath.Path, lock: RunLock) -> Checkpointer:
    """Open the checkpoints of a run directory. Collective: every process must call this.

    Args:
        config: The resolved configuration.
        workdir: The run directory.
        lock: The lock on the run directory, which is checked before each write.
    """
    folder, settings = workdir / CHECKPOINTS, config.checkpoint
    return Checkpointer(folder, settings.keep_last, settings.keep_every_steps, check=lock.check)


@contextlib.contextmanager
def writing(workdir: epath.Path) -> Iterator[None]:
    """Convert an `OSError` raised by a write to the run directory to a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {reason_of(error)}") from error


def make_directory(workdir: epath.Path) -> None:
    """Create the run directory, and check that it is writable.

    Raises:
        UserError: The run directory cannot be created or written, or is a file.
    """
    with writing(workdir):
        if workdir.exists() and not workdir.is_dir():
            raise UserError(f"--workdir={workdir} is a file: give the path of a folder")
        workdir.mkdir(parents=True, exist_ok=True)
        # Every process has a file of its own, since all of them try at once.
        trial = workdir / f".writable_{jax.process_index()}"
        trial.write_text("")
        trial.unlink()


def first_step(checkpoints: Checkpointer, times: RunLength, workdir: epath.Path) -> int:
    """Return the step of the latest valid checkpoint, or 0 if there is no checkpoint.

    Collective: every process must call this.

    Raises:
        UserError: The checkpoint is from a step after the end of this run, all checkpoints are
            damaged, or a checkpoint cannot be read.
    """
    done = checkpoints.latest_valid_step() or 0
    if done > times.total:
        raise UserError(
            f"--workdir={workdir} holds a checkpoint of step {done}, past the end of this run at "
            f"step {times.total}: make the run longer, or give another --workdir"
        )
    return done


def restore_or_begin(
    training: Training,
    checkpoints: Checkpointer,
    first: int,
    abstract: TrainState,
    stream: dict[str, Any],
    report: console.Reporter,
    timeout: float,
) -> tuple[int, TrainState, Progress]:
    """Restore a checkpoint, or initialize a new run. Collective: every process must call this.

    Args:
        training: The model, data and schedule to train.
        checkpoints: The manager of the checkpoints in the run directory.
        first: The step of the checkpoint to restore; 0 to initialize a new run.
        abstract: The train state as `jax.ShapeDtypeStruct` with shardings.
        stream: The seed, batch size and data fingerprint of this start, to be compared with those
            of the checkpoint.
        report: The console that prints the step from which the run resumes.
        timeout: The time limit in seconds for initializing or restoring the state.

    Returns:
        The step, train state and progress of the restored checkpoint or of the new run. The
        restored step is below ``first`` if only an earlier checkpoint matches the model.

    Raises:
        UserError: No checkpoint matches the model; the seed, batch size or data differs from the
            checkpoint's; or the weights of ``init_from`` cannot be used.
    """
    if not first:
        with section("initializing the state", timeout):
            state = training.begin(initialize(training.step, abstract), report)
            jax.block_until_ready(state)
        return 0, state, Progress(stream=stream)
    restoring = "restoring the checkpoint"
    with section(restoring, timeout), barrier(restoring):
        first, state, restored = checkpoints.restore(first, abstract)
    progress = Progress.from_json(restored)
    check_stream(progress.stream, stream, first, training.allowed)
    checkpoints.set_aside_refused()
    report.say(f"resumed from the checkpoint of step {first}")
    progress.stream = stream
    return first, state, progress


def record_start(
    config: ConfigDict,
    workdir: epath.Path,
    first: int,
    facts: dict[str, Any],
    report: console.Reporter,
) -> None:
    """Store the configuration and environment of this start, and print changed settings.

    Settings are compared with those of the run's first start. Processes other than process 0 do
    nothing.

    Args:
        config: The resolved configuration.
        workdir: The run directory.
        first: The step from which the run starts or resumes.
        facts: The environment and the run facts to store in ``environment.json``.
        report: The console that prints the changed settings.
    """
    if jax.process_index():
        return
    path = workdir / "config.json"
    stored = stored_config(workdir)
    if stored is not None:
        # `from_json` fills in the keys that are newer than the run.
        began = from_json(json.dumps(first_config(workdir) or json.loads(stored)))
        old, new = (flatten(json.loads(to_json(of))) for of in (began, config))
        for key in sorted(new.keys() | old.keys()):
            if old.get(key) != new.get(key):
                report.say(f"changed since this run began: {key} {old.get(key)} -> {new.get(key)}")
    text = to_store(config, stored)
    append_start(workdir, first, text, facts)
    replace_text(path, text + "\n")
    replace_text(workdir / "environment.json", json.dumps(facts, indent=2) + "\n")


def record_parameters(parameters: Any, workdir: epath.Path) -> None:
    """Write the shape and sharding of every parameter to ``parameters.txt``."""
    if jax.process_index() == 0:
        overview = parameter_overview.get_parameter_overview(parameters, include_stats="sharding")
        replace_text(workdir / "parameters.txt", overview + "\n")
