"""Initialization of a new run with the weights of another run, an export or another library.

Only weights are loaded; the optimizer state is not. The learning-rate schedule and the data order
start from the beginning, unlike in a resumed run.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from can_jax.checkpoint.run_directory import find_checkpoint, newest_state, read_run
from can_jax.distributed.sharding_rules import named_leaves, path_name
from can_jax.models.patch_embed import fixed_map, fold, unfold
from can_jax.models.variant import PLAIN, Variant, variant_of
from can_jax.train.step import abstract_state, stored_step
from can_jax.utils.errors import UserError
from can_jax.weights.accounting import refuse_unused
from can_jax.weights.descriptions import is_run
from can_jax.weights.library_configs import Facts, Stated, equal_facts
from can_jax.weights.read_weights import OWN, Weights, read_weights, sizes
from can_jax.weights.torch_layout import entries, from_torch

Flat = dict[str, Any]  # arrays by path
ENCODER = "encoder/"
EMBEDDING = ("encoder/patch_embed/kernel", "encoder/patch_embed/bias")


def initial_weights(
    source: str,
    parameters: Any,
    mesh: Mesh,
    variant: Variant = PLAIN,
    statistics: Any = None,
    normalization: Facts | None = None,
) -> tuple[Any, list[str]]:
    """Replace parameters by arrays of the same name and shape from another run or a file.

    Args:
        source: The path of a run directory, one of its checkpoints, an export or a weights file.
        parameters: The initialized parameters, which keep their values where the source has no
            match.
        mesh: The device mesh on which the parameters are sharded.
        variant: The options of this run's encoder, such as its GELU approximation.
        statistics: The batch statistics of the network. If ``statistics`` holds a fixed whitening
            map, the loaded patch embedding is converted to take whitened patches. The converted
            patch embedding computes the same tokens as the loaded one.
        normalization: The ``mean`` and ``std`` by which this run normalizes images. If
            ``normalization`` is None, the notes state the normalization of the weights, but do not
            compare it.

    Returns:
        The updated parameters, and lines to print about loaded, missing and unused arrays.

    Raises:
        UserError: The source cannot be read, its encoder does not match this run's, or it has no
            array that fits this run.
    """
    location, at = find_checkpoint(source, "config.init_from=")
    notes: list[str] = []
    own = is_run(location)
    if own:
        config = read_run(location)
        step = stored_step(config)
        restored = newest_state(location, abstract_state(step, mesh), step=at)[1]
        theirs = named_leaves(fold(step.evaluated(restored), restored.batch_stats)[0])
        facts: Facts = {"mean": list(config.augment.mean), "std": list(config.augment.std)}
        if config.model.backbone == "vit":
            options = dataclasses.asdict(variant_of(config.model))
            facts |= {"options": options, "gelu": options["gelu"]}
        notes = _differences(Stated(facts, {}), variant, normalization)
    else:
        weights = read_weights(location)
        own = OWN in weights.arrays
        try:
            theirs, notes = _of_weights(weights, parameters, variant, normalization)
        except UserError as error:
            raise UserError(f"config.init_from={source}: {error}") from error
    ours = named_leaves(parameters)
    taken = {name for name, array in ours.items() if _fits(theirs.get(name), array)}
    if not taken:
        raise UserError(
            f"config.init_from={source} has no array that fits this model; set config.model to "
            "the architecture of the weights, which contain, for example, "
            f"{', '.join(f'{k} {tuple(v.shape)}' for k, v in list(theirs.items())[:3])}"
        )

    if own and any(name.startswith(ENCODER) for name in theirs):
        _refuse_other_encoder(source, theirs, ours, taken)

    fixed = fixed_map(statistics or {})
    if fixed is not None and taken.issuperset(EMBEDDING):
        kernel, bias = (theirs[name] for name in EMBEDDING)
        theirs |= zip(EMBEDDING, unfold(kernel, bias, fixed), strict=True)

    def take(path: tuple[Any, ...], array: Any) -> Any:
        name = path_name(path)
        if name not in taken:
            return array
        return jax.device_put(np.asarray(theirs[name]).astype(array.dtype), array.sharding)

    lines = [f"weights from {source}: {len(taken)} of {len(ours)} arrays"]
    missing, left = sorted(ours.keys() - taken), sorted(theirs.keys() - taken)
    for what, names in (("initialized randomly", missing), ("not used", left)):
        if names:
            lines.append(f"  {what}: {', '.join(names)}")
    lines += [f"  {note}" for note in notes]
    return jax.tree_util.tree_map_with_path(take, parameters), lines


def _refuse_other_encoder(source: str, theirs: Flat, ours: Flat, taken: set[str]) -> None:
    """Check that all arrays of two encoders fit, except that the grids of learned positions can
    differ.

    Raises:
        UserError: An array of an encoder is missing in the other one, or has another shape there.
    """
    names = {name for name in theirs.keys() | ours.keys() if name.startswith(ENCODER)}
    both = theirs.keys() & ours.keys()
    other = sorted(names - taken - (both & {f"{ENCODER}positions"}))
    if other:
        shapes = [
            str(tuple(arrays[other[0]].shape)) if other[0] in arrays else "absent"
            for arrays in (theirs, ours)
        ]
        raise UserError(
            f"config.init_from={source}: arrays of the encoder that do not fit this model: "
            f"{len(other)}, such as {other[0]}, {shapes[0]} in the weights, {shapes[1]} here; set "
            "config.model to the architecture of the weights"
        )


def _fits(theirs: Any, ours: Any) -> bool:
    return theirs is not None and tuple(theirs.shape) == tuple(ours.shape)


def _of_weights(
    weights: Weights, parameters: Any, variant: Variant, normalization: Facts | None
) -> tuple[Flat, list[str]]:
    """Return the arrays of a weights file under this project's names, and notes to print.

    A parameter is converted if the file holds all arrays from which the parameter is assembled.
    Unused arrays outside the encoder keep the names that they have in the file. ``weights`` is the
    result of `read_weights`; the other arguments are those of `initial_weights`.

    Raises:
        UserError: An encoder array of the file would be unused, or does not match this encoder.
    """
    arrays, notes = weights.arrays, list(weights.warnings)
    differences = _differences(Stated(weights.facts, weights.keys), variant, normalization)
    if OWN in arrays:
        return arrays, notes + differences
    converted: Flat = {}
    used: set[str] = set()
    wrong: list[UserError] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
        tree = _nest(path, leaf)
        try:
            names = {entry.name for entry in entries(tree)}
        except KeyError:
            continue  # other libraries have no such parameter
        if not names & arrays.keys():
            continue
        try:
            (converted[path_name(path)],) = jax.tree.leaves(from_torch(arrays, tree))
            used |= names
        except UserError as error:
            if path_name(path).startswith("encoder/"):
                wrong.append(error)
    rest = {name: array for name, array in arrays.items() if name not in used}
    if converted:
        if wrong:
            raise wrong[0]
        refuse_unused(arrays, used)
        _compare_encoder(weights, parameters, notes)
        notes += differences
    return converted | rest, notes


def _differences(stated: Stated, variant: Variant, normalization: Facts | None) -> list[str]:
    """Compare the options and normalization of the weights with those of this run; return notes.

    Args:
        stated: The known facts about the weights, such as ``gelu``, ``options``, ``mean`` and
            ``std``.
        variant: The options of this run's encoder.
        normalization: The ``mean`` and ``std`` of this run, or None; see `initial_weights`.
    """
    facts = stated.facts
    notes = _different_options(facts, variant)
    expected: Facts = {name: facts[name] for name in ("mean", "std") if name in facts}
    unknown = [stated.keys[name] for name, value in expected.items() if value is None]
    if unknown:
        notes.append(unknown[0])
    elif normalization is None:
        if expected:
            notes.append(f"the weights expect images normalized with {_texts(expected)}")
    elif any(not equal_facts(expected[name], normalization[name]) for name in expected):
        notes.append(
            f"the weights expect images normalized with {_texts(expected)}, but this run "
            f"normalizes with {_texts(normalization)}; set config.augment.mean and "
            "config.augment.std to match the weights"
        )
    return notes


def _different_options(facts: Facts, variant: Variant) -> list[str]:
    """Return notes on encoder options that differ between the weights and this run."""
    options = dataclasses.asdict(PLAIN) | facts.get("options", {})
    if options["pre_norm"] and facts.get("gelu") is None:
        return [
            f"no file states the activation of the weights; this run has gelu={variant.gelu}. "
            "Models of OpenAI, MetaCLIP and DFN use gelu=quick, those of OpenCLIP gelu=exact; set "
            "config.model.backbone_options to match"
        ]
    notes = []
    gelu_effect = "1e-2" if "quick" in (options["gelu"], variant.gelu) else "1e-4"
    for name, key, effect in (
        ("epsilon", "layer_norm_eps", "may differ by about 1e-4"),
        ("gelu", "the GELU variant", f"may differ by about {gelu_effect}"),
        ("norm", "the input of the final LayerNorm", "differ"),
    ):
        theirs, ours = options[name], getattr(variant, name)
        if theirs != ours:
            notes.append(
                f"{key} is {theirs} in the weights and {ours} in this run: features {effect}; set "
                "config.model.backbone_options to match the weights"
            )
    return notes


def _texts(normalization: Facts) -> str:
    """Format a normalization for a note, such as ``mean [0.5], std [0.5]``."""
    return ", ".join(f"{name} {value}" for name, value in normalization.items())


def _compare_encoder(weights: Weights, parameters: Any, notes: list[str]) -> None:
    """Reject weights whose final norm, position embedding or number of heads does not match this
    run.

    Args:
        weights: The weights and their options, as returned by `read_weights`.
        parameters: The parameters of this run, to which the weights are compared.
        notes: The list to which a note is appended if the weights have no position embedding to
            compare.

    Raises:
        UserError: The encoder of the weights differs from that of this run.
    """
    options = weights.facts["options"]
    if options.get("norm") == "pooled":
        raise UserError(
            "fc_norm, which normalizes the mean of the tokens, has no counterpart in this "
            "encoder; give weights without it, such as those before fine-tuning"
        )
    if options.get("positions") == "learned" and "positions" not in parameters["encoder"]:
        raise UserError(
            "pos_embed is not the fixed 2-D sin-cos table: learned positions require "
            "config.model.backbone_options=(('positions','learned'),)"
        )
    shape = parameters["encoder"]["blocks"]["layers"]["attention"]["qkv"]["kernel"].shape
    heads = shape[3]
    if weights.facts.get("heads", heads) != heads:
        raise UserError(
            f"the weights have {weights.facts['heads']} heads, but config.model has {heads}; "
            f"set config.model.heads={weights.facts['heads']}"
        )
    # A file with a decoder alone has no positions or patches to compare.
    if {"patch_embed.proj.weight", "pos_embed"} & weights.arrays.keys():
        sizes(weights)
    if "pos_embed" not in weights.arrays:
        notes.append(
            "the file has no pos_embed to compare with the position embeddings of this run"
        )


def _nest(path: tuple[Any, ...], leaf: Any) -> Any:
    """Return a nested dict with a single leaf at the given path."""
    for key in reversed(path):
        leaf = {key.key: leaf}
    return leaf
