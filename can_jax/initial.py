"""Weights to start a new run from: those of another run, or of a file under MAE's names.

Only weights are taken. The schedule, the optimizer's moments and the data begin anew, which is what
tells this from going on with a run.
"""

from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from can_jax.capture import read_config
from can_jax.checkpoint import Checkpointer
from can_jax.config import resolve
from can_jax.errors import UserError
from can_jax.parallel.rules import path_name
from can_jax.step import Steps, TrainState, abstract_state, make_step
from can_jax.weights.reading import read_arrays
from can_jax.weights.torch_layout import entries, from_torch

Flat = dict[str, Any]  # arrays by path


def initial_weights(source: str, parameters: Any, mesh: Mesh) -> tuple[Any, list[str]]:
    """Parameters with all that the source has for them.

    Args:
        source: a run directory, or a file that `weights/reading.py` reads.
        parameters: as they were initialised; what is not found stays.
        mesh: on which they lie.

    Returns:
        The parameters, and lines that say what was found and what was not.

    Raises:
        UserError: the source cannot be read, or has nothing that fits.
    """
    place = epath.Path(source)
    if place.is_dir():
        step = make_step(resolve(read_config(place)), lambda _: 0.0)
        found = newest_state(place, step, mesh)[1].parameters
        theirs = {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(found)}
    elif place.exists():
        theirs = _of_file(place, parameters)
    else:
        raise UserError(f"config.init_from={source} does not exist")
    ours = {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(parameters)}
    taken = {name for name, array in ours.items() if _fits(theirs.get(name), array)}
    if not taken:
        raise UserError(
            f"config.init_from={source} has nothing that fits; it has, such as, "
            f"{', '.join(f'{k} {tuple(v.shape)}' for k, v in list(theirs.items())[:3])}"
        )

    def take(path: tuple[Any, ...], array: Any) -> Any:
        name = path_name(path)
        if name not in taken:
            return array
        return jax.device_put(np.asarray(theirs[name]).astype(array.dtype), array.sharding)

    lines = [f"weights from {source}: {len(taken)} of {len(ours)} arrays"]
    missing, left = sorted(ours.keys() - taken), sorted(theirs.keys() - taken)
    for what, names in (("as initialised", missing), ("not used", left)):
        if names:
            lines.append(f"  {what}: {', '.join(names)}")
    return jax.tree_util.tree_map_with_path(take, parameters), lines


def _fits(theirs: Any, ours: Any) -> bool:
    return theirs is not None and tuple(theirs.shape) == tuple(ours.shape)


def newest_state(workdir: epath.Path, step: Steps, mesh: Mesh) -> tuple[int, TrainState]:
    """The newest whole checkpoint of a run: its number and its state. Nothing is changed there.

    Args:
        workdir: of the run.
        step: what it trains.
        mesh: over which the state is placed.

    Raises:
        UserError: there is none.
    """
    checkpoints = Checkpointer(workdir / "checkpoints", keep_last=None, read_only=True)
    newest = checkpoints.newest_whole()
    if newest is None:
        raise UserError(f"{workdir} holds no checkpoint")
    number, state, _ = checkpoints.restore(newest, abstract_state(step, mesh))
    checkpoints.close()
    return number, state


def _of_file(place: epath.Path, parameters: Any) -> Flat:
    """Arrays under MAE's names as ours, as far as a file has whole ones of them."""
    arrays = read_arrays(place)
    found, used = {}, set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
        tree = _nest(path, leaf)
        try:
            names = {entry.name for entry in entries(tree)}
            (found[path_name(path)],) = jax.tree.leaves(from_torch(arrays, tree))
        except (KeyError, UserError):
            continue  # without a foreign name, not there, or of another shape
        used |= names
    return found | {name: array for name, array in arrays.items() if name not in used}


def _nest(path: tuple[Any, ...], leaf: Any) -> Any:
    """A tree with one leaf, at its path."""
    for key in reversed(path):
        leaf = {key.key: leaf}
    return leaf
