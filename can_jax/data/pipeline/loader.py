"""Open the loader of a source, whatever its kind."""

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
    """Return the batches of a source from a step on.

    Args:
        config: resolved.
        source: of the images.
        mesh: of the devices.
        first_step, total_steps: of the run; the second is exclusive.
        states: `state` of the loader that this one resumes.
        order_version: the version of the run's order; see `can_jax.data.pipeline.order`.
    """
    if isinstance(source, ShardStream):
        return StreamingLoader(config, source, mesh, first_step, total_steps, states)
    return TrainingLoader(config, source, mesh, first_step, total_steps, states, order_version)
