"""Extraction of image features on a device mesh. The result has one feature vector per usable
image, without padding."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from can_jax.data.evaluation.examples import EvaluationSet
from can_jax.distributed.mesh import replicated, whole_batch
from can_jax.distributed.process_slice import slice_of_process
from can_jax.utils.progress import phase


class Features(NamedTuple):
    """The features of all usable examples, as NumPy arrays. An example is usable if its image can
    be decoded; if labels are required, the example must also have a label.

    Attributes:
        features: The feature vector of each example.
        labels: The label of each example; -1 if unknown.
        indices: The index of each example in its data source.
    """

    features: Float[np.ndarray, "examples width"]
    labels: Int[np.ndarray, " examples"]
    indices: Int[np.ndarray, " examples"]


Change = Callable[[np.ndarray, np.ndarray], np.ndarray]  # maps images and their indices to images


class FeatureExtractor:
    """A compiled feature function that can be applied to any number of images.

    Args:
        function: A function of (state, images) that maps uint8 images (images, height, width,
            channels) to features (images, width).
        mesh: The device mesh over which each batch is split.
        batch_size: The number of images in a global batch. The batch size is rounded up to a
            multiple of the number of batch shards of the mesh.
    """

    def __init__(self, function: Callable[..., Any], mesh: Mesh, batch_size: int):
        self._mesh = mesh
        self._share = slice_of_process(mesh, whole_batch(batch_size, mesh))

        def whole(state: Any, images: Any, *facts: Any) -> Any:
            return function(state, images), *facts

        # Replicated outputs give every process the features of all images.
        self._function = jax.jit(whole, out_shardings=replicated(mesh))

    def __call__(
        self, state: Any, examples: EvaluationSet, change: Change | None = None
    ) -> Features:
        """Return the features of all usable examples; `Features` defines which examples are usable.

        Collective: every process must call this.

        Every process must pass the same ``examples``; each process loads its own slice of each
        batch.

        Args:
            state: The first argument of the feature function, for example the parameters of an
                encoder.
            examples: The evaluation set that loads the images in batches.
            change: A function of (images, example indices) that returns the images from which to
                compute features. ``change`` runs on the host, and must keep the shape and dtype of
                the images.
        """
        parts, done = [], 0
        with jax.set_mesh(self._mesh), phase("computing features") as progress:
            for batch in examples.batches(self._share.batch_size, self._share.rows):
                if change:
                    batch = batch._replace(images=change(batch.images, batch.example))
                placed = map(self._share.place, batch)
                features, labels, valid, indices = map(np.asarray, self._function(state, *placed))
                parts.append(Features(features[valid], labels[valid], indices[valid]))
                done += int(valid.sum())
                progress.detail(f"{done:,} images")
        whole = Features(*map(np.concatenate, zip(*parts, strict=True)))
        assert len(np.unique(whole.indices)) == len(whole.indices), (
            "an example was read more than once"
        )
        return whole
