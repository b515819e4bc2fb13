"""Rules that map the path of a parameter to its sharding and its weight decay.

A path is for example `encoder/blocks/layers/mlp/expand/kernel`. The first rule in `RULES` whose
pattern matches the end of the path applies. Parameters of transformer blocks are stacked and have a
leading layer axis. The rules also apply to the optimizer state, whose paths end with the paths of
the parameters.

If no rule matches, for example in a user's backbone, `OF_VECTORS` applies to scalars and vectors,
and `OF_MATRICES` to arrays of two or more axes.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from can_jax.distributed.mesh import platform


@dataclasses.dataclass(frozen=True)
class Rule:
    """The sharding and the weight decay of the parameters whose paths end with a match of
    ``pattern``.

    Attributes:
        pattern: A regular expression for the last components of a path.
        spec: For each axis of the parameter, the mesh axis over which it is split, or None.
        decay: Whether weight decay applies to the parameter.
    """

    pattern: str
    spec: P
    decay: bool


RULES = (
    Rule(r"attention/qkv/kernel", P(None, "fsdp", None, "tensor", None), decay=True),
    Rule(r"attention/qkv/bias", P(None, None, "tensor", None), decay=False),
    Rule(r"(attention/out|mlp/contract)/kernel", P(None, "tensor", "fsdp"), decay=True),
    Rule(r"mlp/expand/kernel", P(None, "fsdp", "tensor"), decay=True),
    Rule(r"mlp/expand/bias", P(None, "tensor"), decay=False),
    Rule(
        r"(patch_embed|embed|predict|predict_noise|hidden|out|head|layers/\d+)/kernel",
        P("fsdp"),
        decay=True,
    ),
    Rule(r"(class|mask)_token|positions|registers", P(), decay=False),
    Rule(r"(attention|mlp)_scale", P(), decay=False),
    Rule(r"(bias|scale)", P(), decay=False),
    Rule(r"(mean|var)", P(), decay=False),  # BatchNorm's running statistics
    Rule(r"map(_mean)?", P(), decay=False),  # the fixed map of the patch embedding
)


# The rules of all other parameters: arrays of two or more axes are split and have weight decay;
# vectors and scalars are not split and have none.
OF_MATRICES, OF_VECTORS = Rule("", P("fsdp"), decay=True), Rule("", P(), decay=False)


def path_name(path: tuple[Any, ...]) -> str:
    """Return a JAX key path as text, with its keys joined by `/`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves of a pytree as a dict from `path_name` to leaf, in the order of
    `jax.tree.leaves`.

    Unlike `flax.traverse_util.flatten_dict`, this function accepts pytrees other than dicts.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {path_name(path): leaf for path, leaf in leaves}
    assert len(named) == len(leaves), "two leaves of the pytree have the same path"
    return named


def rule_of(name: str, axes: int) -> Rule:
    """Return the first rule that matches a parameter, or the default rule.

    Args:
        name: The path of the parameter, with components joined by `/`.
        axes: The number of axes of the parameter.
    """
    for rule in RULES:
        if re.search(rf"(^|/)(?:{rule.pattern})$", name):
            return rule
    return OF_MATRICES if axes > 1 else OF_VECTORS


def map_with_rule(function: Callable[[Rule, Any], Any], tree: Any) -> Any:
    """Return a pytree of parameters with each leaf replaced by ``function(rule, leaf)``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(rule_of(path_name(path), leaf.ndim), leaf), tree
    )


def shardings(tree: Any, mesh: Mesh, *, over_data: bool = False) -> Any:
    """Return the sharding of each leaf of a train state. Scalars are replicated.

    Args:
        tree: A pytree of arrays or of `jax.ShapeDtypeStruct`.
        mesh: The device mesh.
        over_data: Whether axes that are split over `fsdp` are also split over `data`.
    """
    specs = _specs(tree, mesh.shape, over_data=over_data)
    return jax.tree.map(lambda _, spec: NamedSharding(mesh, spec), tree, specs)


def constrain_parameters(tree: Any, *, over_data: bool = False, stacked: bool = True) -> Any:
    """Constrain parameters to their `shardings`; return them unchanged if no mesh is set.

    Args:
        tree: The pytree of parameters.
        over_data: Whether axes that are split over `fsdp` are also split over `data`.
        stacked: Whether the parameters of transformer blocks have the leading layer axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    specs = _specs(tree, mesh.shape, over_data=over_data, stacked=stacked)
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, specs)


def splits_state(config: ConfigDict) -> bool:
    """Return whether ``config.mesh.shard_state`` splits the train state over the mesh axis `data`.

    The setting `auto` stands for True on GPUs and TPUs, and for False on a CPU.
    """
    setting = config.mesh.shard_state
    return platform() != "cpu" if setting == "auto" else bool(setting)


def _specs(tree: Any, mesh: Mapping[str, int], *, over_data: bool, stacked: bool = True) -> Any:
    """Return the `PartitionSpec` of each leaf on a mesh with the given axis sizes."""

    def spec(path: tuple[Any, ...], leaf: Any) -> P:
        if leaf.ndim == 0:
            return P()
        axes = rule_of(path_name(path), leaf.ndim).spec
        if not stacked and len(axes) > leaf.ndim:
            axes = axes[1:]
        # A spec can be shorter than the shape; the remaining axes are not split.
        return P(*(split(axis, size) for axis, size in zip(axes, leaf.shape, strict=False)))

    def split(axis: str | None, size: int) -> Any:
        if axis is None:
            return None
        return _dividing(size, ("fsdp", "data") if over_data and axis == "fsdp" else (axis,), mesh)

    return jax.tree_util.tree_map_with_path(spec, tree)


def _dividing(
    size: int, axes: tuple[str, ...], mesh: Mapping[str, int]
) -> tuple[str, ...] | str | None:
    """Return the mesh axes over which an axis of a parameter is split, or None.

    Mesh axes are dropped from the end of ``axes`` until the number of parts divides ``size``, the
    size of the parameter's axis.
    """
    while axes and size % math.prod(mesh[axis] for axis in axes):
        axes = axes[:-1]
    if len(axes) > 1:
        return axes
    return axes[0] if axes else None
