"""Random keys that depend on the seed, the step and the image, but not on the mesh."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from can_jax.data.pipeline.batch import Batch


def random_streams(seed: int | Int[Array, ""]) -> Key[Array, " 2"]:
    """Return two random keys: one to initialize the parameters, and one for the training steps."""
    return jax.random.split(jax.random.key(seed))


def row_keys(seed: int | Int[Array, ""], step: Int[Array, ""], batch: Batch) -> Key[Array, " rows"]:
    """Derive a random key for each view of each image in a batch.

    A key depends on the seed, the step, the view index and the image's position in the data order.
    The random keys are the same on every mesh and after a resume.
    """
    views = batch.views.shape[1]
    key = jax.random.fold_in(random_streams(seed)[1], step)
    image_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.position)
    by_view = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(by_view, (0, None))(image_keys, jnp.arange(views)).reshape(-1)
