"""The kNN probe that evaluates the encoder during pretraining on a labeled split."""

from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from can_jax.data.evaluation.examples import EvaluationSet, spread
from can_jax.data.evaluation.pairs import TEST_SPLITS, open_pair
from can_jax.data.sources.base import Source
from can_jax.distributed.mesh import batch_shards
from can_jax.features import health
from can_jax.features.extractor import FeatureExtractor
from can_jax.features.knn import knn_accuracy
from can_jax.features.pixels import pixels
from can_jax.features.unit_length import unit
from can_jax.monitoring.metrics import effective_rank
from can_jax.train.step import Step
from can_jax.utils.errors import UserError

BATCH_SIZE = 64  # images per device
EXAMPLES = 2000  # the most queries whose geometry is measured
PIXELS = 64  # maximum side of an image whose pixels are the features
WITHOUT = "to train without a probe set config.probe.every_steps=0"


class KnnProbe:
    """A kNN classifier of test images by labeled training images, the bank.

    The queries are up to ``probe.queries`` images of ``probe.split``. The bank holds up to
    ``probe.bank`` images of ``data.split``. The classes are those of the bank, and no example is in
    both sets.

    Args:
        config: The resolved configuration.
        step: The train step, whose `features` are evaluated.
        bank: The training images.
        mesh: The device mesh.

    Raises:
        UserError: Queries or bank have no labeled image, or the queries have unknown classes.
    """

    def __init__(self, config: ConfigDict, step: Step, bank: Source, mesh: Mesh):
        settings = config.probe
        splits = TEST_SPLITS if settings.split == TEST_SPLITS[0] else (settings.split,)
        try:
            pair = open_pair(
                config.data, splits, counts=(settings.bank, settings.queries),
                share=settings.held_out, seed=config.seed, train=bank,
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"probe: {error}; {WITHOUT}") from error
        for note in pair.notes:
            logging.warning("probe: %s", note)
        self._parts = [
            (part, EvaluationSet(config, part.source, 0, labeled=True, only=part.examples))
            for part in (pair.train, pair.test)
        ]
        batch_size = BATCH_SIZE * batch_shards(mesh)
        self._encoder = FeatureExtractor(step.features, mesh, batch_size)
        self._pixels = FeatureExtractor(pixels(PIXELS), mesh, batch_size)
        self._options = {"k": settings.k, "temperature": settings.temperature}

    def __call__(self, state: Any) -> dict[str, float]:
        """Return the accuracy on the encoder's features in percent, and the queries' geometry.

        The metrics are ``probe/knn``, and those of `geometry` with the same prefix. They are
        comparable across objectives, and do not slow the train step down.
        """
        parts = self._features(self._encoder, state)
        measured = geometry(*parts[1])
        accuracy = knn_accuracy(*parts[0], *parts[1], **self._options)
        return {"probe/knn": accuracy} | {f"probe/{name}": v for name, v in measured.items()}

    def on_pixels(self) -> float:
        """Return the accuracy on raw pixels in percent, a baseline for the encoder's features."""
        parts = self._features(self._pixels, None)
        return knn_accuracy(*parts[0], *parts[1], **self._options)

    def _features(
        self, extractor: FeatureExtractor, state: Any
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the features and the labels of the bank and of the queries."""
        parts = []
        for part, examples in self._parts:
            features, labels, _ = extractor(state, examples)
            if not len(labels):
                raise UserError(
                    f"probe: no labeled image of the split {part.name!r} can be decoded; {WITHOUT}"
                )
            parts.append((features, part.numbering(labels)))
        return parts


def geometry(
    features: Float[np.ndarray, "examples width"], labels: Int[np.ndarray, " examples"]
) -> dict[str, float]:
    """Return effective rank, uniformity, tolerance and the share of dead dimensions.

    At most `EXAMPLES` examples are evaluated. Uniformity requires two examples, and tolerance two
    of one class; otherwise these values are left out.
    """
    at = spread(len(features), EXAMPLES)
    features, labels = features[at], labels[at]
    on_sphere = unit(features)
    measured = {
        "effective_rank": effective_rank(on_sphere.T @ on_sphere),
        "dead_dimensions": health.dead_dimensions(features) / features.shape[1],
    }
    if len(features) > 1:
        measured["uniformity"] = health.uniformity(features)
    if (tolerance := health.tolerance(features, labels)) is not None:
        measured["tolerance"] = tolerance
    return measured
