"""The parameters to which weight decay applies."""

from typing import Any

from can_jax.distributed.sharding_rules import map_with_rule


def decay_mask(parameters: Any) -> Any:
    """Return the weight decay mask: a pytree of bools, True for kernels and other matrices.

    The mask is False for biases, scales, tokens and position embeddings.
    """
    return map_with_rule(lambda rule, _: rule.decay, parameters)
