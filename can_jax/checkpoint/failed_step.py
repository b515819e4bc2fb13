"""Dumps of failed train steps, which `python -m can_jax.replay` re-runs for debugging.

A dump is a folder that contains the configuration, the train state, and one file for each process.
The file of a process stores the rows of the batch that are on the devices of that process. In file
and folder names, a dump is called "capture".
"""

import contextlib
import json
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from can_jax.checkpoint.manager import Checkpointer
from can_jax.config.resolve import to_json
from can_jax.data.pipeline.batch import Batch
from can_jax.distributed.runtime import gather
from can_jax.utils.archives import read_npz
from can_jax.utils.errors import UserError, one_line


def write_failed_step(
    folder: epath.Path, config: ConfigDict, step: int, state: Any, batch: Batch
) -> None:
    """Write the dump of a failed train step. Collective: every process must call this.

    Args:
        folder: The folder to write the dump to; created if missing.
        config: The resolved configuration.
        step: The number of the failed step.
        state: The train state after the step. If the update of the step was skipped, the parameters
            equal those before the step.
        batch: The global batch on which the step failed.

    Raises:
        OSError: The dump cannot be written completely.
        UserError: The folder ``state`` in the dump cannot be created or read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[int, dict[str, np.ndarray]] = {}
    arrays = {name: array for name, array in batch._asdict().items() if array is not None}
    for name, array in arrays.items():
        for shard in array.addressable_shards:
            first = shard.index[0].indices(array.shape[0])[0]
            rows.setdefault(first, {})[name] = np.asarray(shard.data)
    parts: dict[str, Any] = {
        name: np.concatenate([rows[i][name] for i in sorted(rows)]) for name in arrays
    }
    with (folder / f"batch_{jax.process_index()}.npz").open("wb") as file:
        np.savez_compressed(file, **parts)
    # The manager saves no step twice, so the state of an earlier failure at this step is removed.
    if jax.process_index() == 0:
        (folder / "state").rmtree(missing_ok=True)
    gather("the folder of the failed step", np.int32(0))
    with contextlib.closing(Checkpointer(folder / "state", keep_last=1)) as checkpoints:
        checkpoints.save(step, state, {})
        if not checkpoints.wait():
            raise OSError("the train state could not be saved; see the warning above")
    if jax.process_index() == 0:
        (folder / "config.json").write_text(to_json(config) + "\n")
        facts = {"step": step, "positions": [int(p) for p in parts["position"][[0, -1]]]}
        (folder / "capture.json").write_text(json.dumps(facts, indent=2) + "\n")


def read_batch(folder: epath.Path) -> Batch:
    """Return the batch that a dump stores, merged over processes and sorted by position in the data
    stream.

    Raises:
        UserError: The folder contains no ``batch_*.npz`` file, or such a file cannot be read.
    """
    paths = sorted(folder.glob("batch_*.npz"))
    if not paths:
        raise UserError(f"{folder} is not a failed-step dump: batch_*.npz not found")
    try:
        files = [read_npz(path) for path in paths]
        required = set(Batch._fields) - set(Batch._field_defaults)
        names = [name for name in Batch._fields if name in required or name in files[0]]
        joined = {name: np.concatenate([file[name] for file in files]) for name in names}
    except (UserError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{folder}/batch_*.npz cannot be read: {one_line(error)}") from error
    # Processes that share rows, such as those along `tensor`, all store them; keep one copy.
    _, order = np.unique(joined["position"], return_index=True)
    rows: dict[str, Any] = {name: array[order] for name, array in joined.items()}
    return Batch(**rows)
