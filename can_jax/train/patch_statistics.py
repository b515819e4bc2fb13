"""The mean and covariance of image patches over the first batches of a run."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from can_jax.augment.photometric import Photometric
from can_jax.data.pipeline.batch import Batch
from can_jax.distributed.mesh import replicated
from can_jax.models.can import pixels_per_patch
from can_jax.models.patch_embed import noise_floor, whitening
from can_jax.monitoring.watchdog import LONG, section
from can_jax.train.losses import prepare
from can_jax.train.microbatches import split_microbatches

IMAGES = 2048  # with two views of 64 patches: a quarter of a million patches


class Moments(NamedTuple):
    """The mean and covariance of noise-free image patches, in float64, and the number of images."""

    mean: Float[np.ndarray, " pixels"]
    covariance: Float[np.ndarray, "pixels pixels"]
    images: int


def second_moment(config: ConfigDict, batch: Batch) -> Float[Array, "size size"]:
    """Return the mean of ``x x^T`` over all patches of a batch, where ``x`` is a flattened patch
    with a 1 in front.

    The images are augmented as in step 0, without noise. `second_moment` can be jitted.

    Args:
        config: The resolved configuration.
        batch: A global batch of images.
    """
    count = config.accumulation.microbatches
    settings = Photometric.from_settings(config.augment.to_dict())
    size = 1 + pixels_per_patch(config)

    def add(total: Array, part: Batch) -> tuple[Array, None]:
        patches = prepare(config, part, jnp.zeros((), jnp.int32), settings).clean
        rows = patches.reshape(-1, size - 1).astype(jnp.float32)
        rows = jnp.concatenate([jnp.ones_like(rows[:, :1]), rows], axis=1)
        return total + jnp.matmul(rows.T, rows, precision="highest") / len(rows), None

    parts = jax.tree.map(lambda x: split_microbatches(x, count), batch)
    total, _ = jax.lax.scan(add, jnp.zeros((size, size)), parts)
    return total / count


def moments_of(second: Float[np.ndarray, "size size"], images: int) -> Moments:
    """Compute mean and covariance from the average of `second_moment` over ``images`` images."""
    mean = np.asarray(second[0, 1:], np.float64)
    covariance = np.asarray(second[1:, 1:], np.float64) - np.outer(mean, mean)
    return Moments(mean, covariance, images)


def batches_to_measure(config: ConfigDict, examples: int) -> int:
    """Return the number of batches that hold `IMAGES` images, or all ``examples`` images if there
    are fewer."""
    return math.ceil(min(IMAGES, examples) / config.batch_size)


def patch_moments(config: ConfigDict, source: Any, mesh: Mesh) -> Moments:
    """Compute the mean and covariance of the patches of the first batches of a run.

    All processes return the same values. Collective: every process must call this.

    Args:
        config: The resolved configuration.
        source: The source of the training images, random-access or streamed.
        mesh: The device mesh over which the batches are split.

    Returns:
        The mean and covariance of the patches, and the number of images measured.
    """
    # Imported late: `can_jax.benchmark.device_study` uses this module without image decoders.
    from can_jax.data.pipeline.loader import open_loader

    steps = batches_to_measure(config, source.examples)
    with section("measuring the patches", LONG * config.stuck_after_seconds), jax.set_mesh(mesh):
        measure = jax.jit(functools.partial(second_moment, config), out_shardings=replicated(mesh))
        loader = open_loader(config, source, mesh, 0, steps)
        second_moments = [np.asarray(measure(next(loader)), np.float64) for _ in range(steps)]
    return moments_of(np.mean(second_moments, axis=0), steps * config.batch_size)


def whitening_of(config: ConfigDict, moments: Moments) -> dict[str, np.ndarray]:
    """Return the arrays, by name, of the whitening map for patches with these moments."""
    floor = noise_floor(config.noise.sigma_max)
    fixed = whitening(moments.mean, moments.covariance, floor)
    return {"map_mean": fixed.mean, "map": fixed.map}


def with_map(statistics: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return the batch statistics with a new whitening map that has the sharding of the old one.

    Args:
        statistics: The batch statistics of the network, as a nested dict.
        arrays: The arrays of the new map, as returned by `whitening_of`.
    """
    encoder = statistics["encoder"]
    old = encoder["patch_embed"]
    new = {
        name: jax.device_put(array.astype(old[name].dtype), old[name].sharding)
        for name, array in arrays.items()
    }
    return statistics | {"encoder": encoder | {"patch_embed": new}}
