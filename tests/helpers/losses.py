"""The losses of a few train steps on the batches of a loader."""

import functools

import jax
import jax.numpy as jnp

from can_jax.data.pipeline.loader import open_loader
from can_jax.data.pipeline.streaming_loader import open_stream
from can_jax.data.sources.registry import open_source
from can_jax.distributed.mesh import make_mesh
from can_jax.train.step import abstract_state, lower_train_step, make_step
from tests.helpers.configs import small_config
from tests.train.states import random_state

STEPS = 3


def losses_of(**changes):
    """All metrics of three steps from the same state, on the data that `config.data` names.

    Args:
        changes: of `config.data`, such as ``path="…"``.
    """
    config = small_config(**{f"data__{key}": value for key, value in changes.items()})
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    source = (open_stream if config.data.streaming else open_source)(config.data, "train")
    state, train = random_state(_abstract()[1]), None
    found = []
    for batch in open_loader(config, source, mesh, 0, STEPS):
        train = train or _compiled(jax.tree.structure(batch), batch)
        state, metrics = train(state, batch)
        found.append({name: value.tolist() for name, value in jax.device_get(metrics).items()})
    return found


@functools.cache
def _abstract():
    config = small_config()
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    step = make_step(config, lambda _: jnp.float32(0.01))
    return step, abstract_state(step, mesh), mesh


_COMPILED = {}


def _compiled(key, batch):
    """The compiled step; all configurations here have the same."""
    if key not in _COMPILED:
        step, abstract, mesh = _abstract()
        _COMPILED[key] = lower_train_step(step, abstract, batch, mesh).compile()
    return _COMPILED[key]
