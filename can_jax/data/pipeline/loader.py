"""The function that opens the loader for a source, random-access or streaming."""

from jax.sharding import Mesh
from ml_collections import ConfigDict

from can_jax.data.pipeline.order import VERSION
from can_jax.data.pipeline.streaming_loader import ShardStream, StreamingLoader
from can_jax.data.pipeline.training_loader import Loader, States, TrainingLoader
from can_jax.data.sources.base import Source


def open_loader(
    config: ConfigDict,
    source: Source | ShardStream,
    mesh: Mesh,
    first_step: int,
    total_steps: int,
    states: States | None = None,
    order_version: int = VERSION,
) -> Loader:
    """Return a loader of the batches from a step on.

    Args:
        config: The resolved configuration.
        source: The source or stream that holds the images.
        mesh: The device mesh over which batches are split.
        first_step, total_steps: The range of steps to load, without ``total_steps`` itself.
        states: The checkpointed `state` of the loader to resume; None for a new run.
        order_version: The version of the run's example order; see `can_jax.data.pipeline.order`.
    """
    if isinstance(source, ShardStream):
        return StreamingLoader(config, source, mesh, first_step, total_steps, states)
    return TrainingLoader(config, source, mesh, first_step, total_steps, states, order_version)
