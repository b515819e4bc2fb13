"""A function that opens the training loader for a random-access source or a stream of shards."""

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
    """Return a loader of the training batches from ``first_step`` on.

    Args:
        config: The resolved configuration; `data`, `augment`, `batch_size`, `seed` and
            `objective.contrastive.exclude_copies` are used.
        source: The random-access source or the stream of shards to read.
        mesh: The device mesh over which batches are split.
        first_step, total_steps: The first step to load, and the total number of steps of the run.
        states: The `Loader.state` stored in the checkpoint; None for a new run.
        order_version: The version of the run's example order; see `can_jax.data.pipeline.order`.
            A stream of shards ignores ``order_version``.

    Raises:
        UserError: ``order_version`` is not supported by this release.
    """
    if isinstance(source, ShardStream):
        return StreamingLoader(config, source, mesh, first_step, total_steps, states)
    return TrainingLoader(config, source, mesh, first_step, total_steps, states, order_version)
