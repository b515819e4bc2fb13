"""Construction of the network of a configuration, with the heads that its objectives need."""

import functools
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from can_jax import objectives
from can_jax.models import can
from can_jax.utils.errors import UserError

Tree = Any


def heads(config: ConfigDict) -> dict[str, can.HeadBuilder]:
    """Return the functions that build the heads, in the order in which the heads are created.

    The random initialization of the network depends on the order of the heads. The decoder and the
    noise-level embedding count as heads. The result includes only heads that the active objectives
    need.

    Raises:
        UserError: Two heads have the same name.
    """
    settings = config.objective.to_dict()
    reads, active = objectives.reads(settings), objectives.active(settings)
    needed: dict[str, Any] = {}
    for name, head in objectives.head_names(settings).items():
        if head in needed or head in can.BUILDERS:
            raise UserError(
                f"the objective {name!r} has head_name={head!r}, the name of another head of the "
                "network; give another head_name"
            )
        needed[head] = active[name].head
    if "noise" in reads and config.noise.sigma_max and config.noise.embed_level:
        needed["noise_level"] = can.BUILDERS["noise_level"]
    if "prediction" in reads:
        needed["decoder"] = can.BUILDERS["decoder"]
    elif "decoded" in reads:
        needed["decoder"] = functools.partial(can.BUILDERS["decoder"], predicts=False)
    return needed


def owned_heads(model: can.CAN, settings: objectives.Settings) -> objectives.Heads:
    """Return the head module of each active objective that has one, by objective name."""
    names = objectives.head_names(settings)
    return {objective: getattr(model, name) for objective, name in names.items()}


def abstract_network(config: ConfigDict) -> can.CAN:
    """Return the network of a configuration with `jax.ShapeDtypeStruct` in place of arrays."""
    return nnx.eval_shape(lambda: can.CAN(config, heads(config), nnx.Rngs(0)))


def encoder_network(config: ConfigDict) -> can.CAN:
    """Return the network of a configuration, but without its heads and with `jax.ShapeDtypeStruct`
    in place of arrays."""
    return nnx.eval_shape(lambda: can.CAN(config, {}, nnx.Rngs(0)))


def statistics_of(model: can.CAN) -> Tree:
    """Return the variables that are not trained, such as the running statistics of BatchNorm
    layers, as a nested dict."""
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
