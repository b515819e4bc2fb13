"""Features of images, computed over the mesh, every image counted exactly once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from can_jax.data.evaluation.examples import EvaluationSet
from can_jax.distributed.mesh import batch_shards, replicated
from can_jax.distributed.process_slice import share_of_process


class Features(NamedTuple):
    """Of every valid example, on the host."""

    features: Float[np.ndarray, "examples width"]
    labels: Int[np.ndarray, " examples"]  # -1 where unknown
    numbers: Int[np.ndarray, " examples"]  # in the source


Change = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of images, given their numbers


class FeatureExtractor:
    """Compiles a feature function once, and applies it to any number of images.

    Args:
        function: ``function(state, images)`` to (images, width); images are bytes.
        mesh: over which each batch of images is split.
        batch_size: images of a batch at most, rounded up to divide over the mesh.
    """

    def __init__(self, function: Callable[..., Any], mesh: Mesh, batch_size: int):
        shards = batch_shards(mesh)
        self._mesh = mesh
        self._share = share_of_process(mesh, -(-batch_size // shards) * shards)

        def whole(state: Any, images: Any, *facts: Any) -> Any:
            return function(state, images), *facts

        # Every process gets the features of all of them.
        self._function = jax.jit(whole, out_shardings=replicated(mesh))

    def __call__(
        self, state: Any, examples: EvaluationSet, change: Change | None = None
    ) -> Features:
        """Features of all examples. Every process passes the same ones, and loads its share.

        Args:
            state: what the function takes first.
            examples: to read.
            change: what is done to the images of the host before; it keeps their shape.
        """
        found = []
        with jax.set_mesh(self._mesh):
            for batch in examples.batches(self._share.batch_size, self._share.rows):
                if change:
                    batch = batch._replace(images=change(batch.images, batch.number))
                placed = map(self._share.place, batch)
                features, labels, valid, numbers = map(np.asarray, self._function(state, *placed))
                found.append(Features(features[valid], labels[valid], numbers[valid]))
        whole = Features(*map(np.concatenate, zip(*found, strict=True)))
        assert len(np.unique(whole.numbers)) == len(whole.numbers), "every example counts once"
        return whole
