"""Train states of random arrays, which need no compiled initialization."""

import dataclasses
from typing import Any

import jax
import numpy as np

from can_jax.distributed.sharding_rules import path_name
from can_jax.train.step import TrainState


def random_state(abstract: TrainState, seed: int = 0) -> TrainState:
    """Draw the parameters of a state before its first step, on the devices of its shardings.

    Biases differ from 0 and scales from 1, unlike those of `initialize`: a test notices where one
    of them is left out.

    Args:
        abstract: The shapes and shardings, as `abstract_state` returns them.
        seed: The seed of the parameters.
    """
    rng = np.random.default_rng(seed)

    def parameter(path: Any, leaf: Any) -> Any:
        mean = 1.0 if path_name(path).endswith("scale") else 0.0
        return (mean + 0.2 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    def statistic(path: Any, leaf: Any) -> Any:
        if path_name(path).endswith(("map", "map_mean")):  # of the patch embedding
            return parameter(path, leaf)
        return np.full(leaf.shape, path_name(path).endswith("var"), leaf.dtype)

    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    state = dataclasses.replace(
        state,
        parameters=jax.tree_util.tree_map_with_path(parameter, abstract.parameters),
        batch_stats=jax.tree_util.tree_map_with_path(statistic, abstract.batch_stats),
    )
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, abstract))
