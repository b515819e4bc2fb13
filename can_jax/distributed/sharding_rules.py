"""Rules by parameter path: the sharding of a parameter, and whether weight decay applies.

A parameter is identified by its path, such as `encoder/blocks/layers/mlp/expand/kernel`. The first
rule whose pattern matches the end of the path applies. Parameters of stacked blocks have a leading
layer axis. The same rules cover optimizer state, whose paths end as those of its parameters do.

A registered head or backbone needs no rule: `OF_MATRICES` or `OF_VECTORS` applies to a parameter
without one.
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
    """The sharding and the weight decay of parameters whose path ends in a pattern.

    Attributes:
        pattern: A regular expression.
        spec: For each axis of the parameter, the mesh axis over which it is split, or None.
        decay: Whether weight decay applies.
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


# The rules of all other parameters: matrices are split and decay, vectors and scalars do neither.
OF_MATRICES, OF_VECTORS = Rule("", P("fsdp"), decay=True), Rule("", P(), decay=False)


def path_name(path: tuple[Any, ...]) -> str:
    """Return a tree path as the rules match it: keys joined by `/`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves of any tree by their `path_name`, in the order of `jax.tree.leaves`.

    `flax.traverse_util.flatten_dict` takes dicts alone, and keeps the order of their insertion.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {path_name(path): leaf for path, leaf in leaves}
    assert len(named) == len(leaves), "two leaves of a tree have one name"
    return named


def rule_of(name: str, axes: int) -> Rule:
    """Return the rule of a parameter.

    Args:
        name: The path of the parameter.
        axes: The number of its axes.
    """
    for rule in RULES:
        if re.search(rf"(^|/){rule.pattern}$", name):
            return rule
    return OF_MATRICES if axes > 1 else OF_VECTORS


def map_with_rule(function: Callable[[Rule, Any], Any], tree: Any) -> Any:
    """Apply ``function(rule, leaf)`` to every parameter of a tree."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(rule_of(path_name(path), leaf.ndim), leaf), tree
    )


def decay_mask(parameters: Any) -> Any:
    """Return a mask of weight decay: True for matrices, False for biases, norms and tokens."""
    return map_with_rule(lambda rule, _: rule.decay, parameters)


def shardings(tree: Any, mesh: Mesh, *, over_data: bool = False) -> Any:
    """Return the sharding of each leaf of a train state; scalars are replicated.

    Args:
        tree: The arrays or shapes.
        mesh: The device mesh.
        over_data: Whether axes that are split over `fsdp` are also split over `data`.
    """
    specs = _specs(tree, mesh.shape, over_data=over_data)
    return jax.tree.map(lambda _, spec: NamedSharding(mesh, spec), tree, specs)


def constrain_parameters(tree: Any, *, over_data: bool = False, stacked: bool = True) -> Any:
    """Constrain parameters to their `shardings`; without `jax.set_mesh`, return them unchanged.

    Args:
        tree: The parameters.
        over_data: Whether axes that are split over `fsdp` are also split over `data`.
        stacked: Whether the parameters of blocks have their leading layer axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    specs = _specs(tree, mesh.shape, over_data=over_data, stacked=stacked)
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, specs)


def splits_state(config: ConfigDict) -> bool:
    """Return whether the state is split over `data`: ``mesh.shard_state``, on these devices."""
    setting = config.mesh.shard_state
    return platform() != "cpu" if setting == "auto" else bool(setting)


def _specs(tree: Any, mesh: Mapping[str, int], *, over_data: bool, stacked: bool = True) -> Any:
    """Return how each leaf is split on a mesh of a given shape."""

    def spec(path: tuple[Any, ...], leaf: Any) -> P:
        if leaf.ndim == 0:
            return P()
        axes = rule_of(path_name(path), leaf.ndim).spec
        if not stacked and len(axes) > leaf.ndim:
            axes = axes[1:]
        return P(
            *(
                axis
                and _dividing(
                    size, ("fsdp", "data") if over_data and axis == "fsdp" else (axis,), mesh
                )
                for axis, size in zip(axes, leaf.shape, strict=False)
            )
        )

    return jax.tree_util.tree_map_with_path(spec, tree)


def _dividing(
    size: int, axes: tuple[str, ...], mesh: Mapping[str, int]
) -> tuple[str, ...] | str | None:
    """Return the mesh axes over which an axis of a parameter is split, or None.

    The last mesh axes are left out until the number of parts divides the size.
    """
    while axes and size % math.prod(mesh[axis] for axis in axes):
        axes = axes[:-1]
    return axes if len(axes) > 1 else axes[0] if axes else None
