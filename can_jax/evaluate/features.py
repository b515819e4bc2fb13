"""Features of images, computed over the mesh, every image counted exactly once."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from can_jax.parallel.mesh import batch_sharding, batch_shards, replicated


class FeatureExtractor:
    """Compiles a feature function once, and applies it to any number of images.

    Args:
        function: ``function(state, images)`` to (images, width); images are bytes.
        mesh: over which each chunk of images is split.
        batch_size: images of a chunk at most, rounded up to divide over the mesh.
    """

    def __init__(self, function: Callable[..., Any], mesh: Mesh, batch_size: int):
        shards = batch_shards(mesh)
        self._chunk = -(-batch_size // shards) * shards
        self._mesh = mesh
        self._sharding = batch_sharding(mesh)
        self._function = jax.jit(function, out_shardings=replicated(mesh))

    def __call__(
        self, state: Any, images: UInt8[np.ndarray, "examples height width channels"]
    ) -> Float[np.ndarray, "examples features"]:
        """Features of all images, on the host. Every process passes the same images."""
        found = []
        with jax.set_mesh(self._mesh):
            for start in range(0, len(images), self._chunk):
                chunk = images[start : start + self._chunk]
                padding = [(0, self._chunk - len(chunk))] + [(0, 0)] * 3
                placed = self._place(np.pad(chunk, padding))
                found.append(np.asarray(self._function(state, placed))[: len(chunk)])
        return np.concatenate(found)

    def _place(self, images: np.ndarray) -> jax.Array:
        """Images that every process holds whole, split over the mesh."""
        return jax.make_array_from_callback(
            images.shape, self._sharding, lambda index: images[index]
        )
