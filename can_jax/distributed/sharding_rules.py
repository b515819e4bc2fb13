"""What holds for a parameter because of its name: where it lies, and whether it decays.

A parameter is known by its path, such as `encoder/blocks/layers/mlp/expand/kernel`. The first rule
whose pattern is found at the end of the path holds. Blocks are stacked: their parameters have a
leading layer axis. Optimizer state is found by the same rules, its paths end as its parameter's do.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


@dataclasses.dataclass(frozen=True)
class Rule:
    """A pattern for the end of a path, and what holds for the parameters it finds."""

    pattern: str
    spec: P
    decay: bool


RULES = (
    Rule(r"attention/qkv/kernel", P(None, "fsdp", None, "tensor", None), decay=True),
    Rule(r"attention/qkv/bias", P(None, None, "tensor", None), decay=False),
    Rule(r"(attention/out|mlp/contract)/kernel", P(None, "tensor", "fsdp"), decay=True),
    Rule(r"mlp/expand/kernel", P(None, "fsdp", "tensor"), decay=True),
    Rule(r"mlp/expand/bias", P(None, "tensor"), decay=False),
    Rule(r"(patch_embed|embed|predict|hidden|out|head|layers/\d+)/kernel", P("fsdp"), decay=True),
    Rule(r"(class|mask)_token", P(), decay=False),
    Rule(r"(bias|scale)", P(), decay=False),
    Rule(r"(mean|var)", P(), decay=False),  # BatchNorm's running statistics
)


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as the rules read it: keys joined by `/`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def rule_of(name: str) -> Rule:
    """The rule that holds for a parameter.

    Raises:
        KeyError: no rule covers it. A new kind of parameter needs a decision, not a default.
    """
    for rule in RULES:
        if re.search(rf"(^|/){rule.pattern}$", name):
            return rule
    raise KeyError(f"no rule in can_jax/distributed/sharding_rules.py covers the parameter {name}")


def map_with_rule(function: Callable[[Rule, Any], Any], tree: Any) -> Any:
    """Apply ``function(rule, leaf)`` to every parameter of a tree."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(rule_of(path_name(path)), leaf), tree
    )


def decay_mask(parameters: Any) -> Any:
    """True for the matrices, which weight decay shrinks; False for biases, norms and tokens."""
    return map_with_rule(lambda rule, _: rule.decay, parameters)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Where each leaf of a train state lies. Scalars are replicated.

    An axis of a parameter that the mesh axis does not divide is left whole.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if leaf.ndim == 0:
            return NamedSharding(mesh, P())
        spec = rule_of(path_name(path)).spec
        fitting = (
            axis if axis is None or size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, leaf.shape, strict=False)
        )
        return NamedSharding(mesh, P(*fitting))

    return jax.tree_util.tree_map_with_path(place, tree)
