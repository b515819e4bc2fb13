"""Weights to start a new run from: those of another run, an export, or another library.

Only weights are taken. The schedule, the optimizer's moments and the data begin anew, which is what
tells this from going on with a run.
"""

from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from can_jax.checkpoint.run_directory import newest_state, read_run
from can_jax.distributed.sharding_rules import path_name
from can_jax.train.step import abstract_state, stored_step
from can_jax.utils.errors import UserError
from can_jax.weights.accounting import refuse_unused
from can_jax.weights.descriptions import is_run
from can_jax.weights.read_weights import OWN, Weights, read_weights, sizes
from can_jax.weights.torch_layout import entries, from_torch

Flat = dict[str, Any]  # arrays by path


def initial_weights(source: str, parameters: Any, mesh: Mesh) -> tuple[Any, list[str]]:
    """Parameters with all that the source has for them.

    Args:
        source: What `can_jax.load` opens, too.
        parameters: as they were initialised; what is not found stays.
        mesh: on which they lie.

    Returns:
        The parameters, and lines that say what was found and what was not.

    Raises:
        UserError: the source cannot be read, or has nothing that fits.
    """
    place = epath.Path(source)
    notes: list[str] = []
    if not place.exists():
        raise UserError(f"config.init_from={source} does not exist")
    if is_run(place):
        step = stored_step(read_run(place))
        found = newest_state(place, abstract_state(step, mesh))[1].parameters
        theirs = {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(found)}
    else:
        weights = read_weights(place)
        try:
            theirs, notes = _of_weights(weights, parameters)
        except UserError as error:
            raise UserError(f"config.init_from={source}: {error}") from error
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
    lines += [f"  {note}" for note in notes]
    return jax.tree_util.tree_map_with_path(take, parameters), lines


def _fits(theirs: Any, ours: Any) -> bool:
    return theirs is not None and tuple(theirs.shape) == tuple(ours.shape)


def _of_weights(weights: Weights, parameters: Any) -> tuple[Flat, list[str]]:
    """Return arrays by our names as far as the weights hold all of one, and notes to print.

    Arrays from outside of the encoder that are not needed keep their names.

    Raises:
        UserError: An array of their encoder would be left unused, or used wrongly.
    """
    arrays, stated = weights.arrays, weights.facts
    if OWN in arrays:
        return arrays, list(weights.warnings)
    found: Flat = {}
    used: set[str] = set()
    wrong: list[UserError] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
        tree = _nest(path, leaf)
        try:
            names = {entry.name for entry in entries(tree)}
        except KeyError:
            continue  # without a foreign name
        if not names & arrays.keys():
            continue
        try:
            (found[path_name(path)],) = jax.tree.leaves(from_torch(arrays, tree))
            used |= names
        except UserError as error:
            if path_name(path).startswith("encoder/"):
                wrong.append(error)
    rest = {name: array for name, array in arrays.items() if name not in used}
    notes = list(weights.warnings)
    if found:
        if wrong:
            raise wrong[0]
        refuse_unused(arrays, used)
        _compare_encoder(weights, parameters, notes)
        normalization = {name: stated[name] for name in ("mean", "std") if name in stated}
        unknown = [weights.keys[name] for name, value in normalization.items() if value is None]
        told = ", ".join(f"{name} {value}" for name, value in normalization.items())
        if unknown:
            notes.append(unknown[0])
        elif told:
            notes.append(f"they were trained on images of {told}")
    return found | rest, notes


def _compare_encoder(weights: Weights, parameters: Any, notes: list[str]) -> None:
    """Refuse weights of other positions or of another number of heads than ours.

    Args:
        weights: Of the other encoder.
        parameters: Ours.
        notes: Gets a line where positions cannot be compared.
    """
    shape = parameters["encoder"]["blocks"]["layers"]["attention"]["qkv"]["kernel"].shape
    heads = shape[3]
    if weights.facts.get("heads", heads) != heads:
        raise UserError(
            f"the weights are of {weights.facts['heads']} heads, config.model has {heads}"
        )
    if {"patch_embed.proj.weight", "pos_embed"} & weights.arrays.keys():  # not a decoder alone
        sizes(weights)
    if "pos_embed" not in weights.arrays:
        notes.append("positions not compared with the fixed sin-cos ones: there is no pos_embed")


def _nest(path: tuple[Any, ...], leaf: Any) -> Any:
    """A tree with one leaf, at its path."""
    for key in reversed(path):
        leaf = {key.key: leaf}
    return leaf
