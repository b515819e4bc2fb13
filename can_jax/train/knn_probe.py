"""The kNN probe, which evaluates the encoder on labeled images during pretraining."""

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
from can_jax.monitoring.scalars import effective_rank
from can_jax.train.step import Step
from can_jax.utils.errors import UserError

BATCH_SIZE = 64  # images per device
EXAMPLES = 2000  # the maximum number of examples whose geometry is measured
PIXELS = 64  # the maximum side of the images whose pixels are features
WITHOUT = "to train without the probe, set config.probe.every_steps=0"


class KnnProbe:
    """A kNN classifier of test images, with labeled training images as its bank.

    The queries are up to ``probe.queries`` images of the split ``probe.split``. The bank holds up
    to ``probe.bank`` images of the split ``data.split``. The classes to predict are those of the
    bank. No example is in both the bank and the queries.

    Args:
        config: The resolved configuration.
        step: The train step, whose method `features` computes the features.
        bank: The data source from which the training images of the bank are drawn.
        mesh: The device mesh on which features are computed.

    Raises:
        UserError: A split does not exist or has no labels, or the queries have classes that the
            training split lacks.
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
        """Return the kNN accuracy in percent, and `geometry` metrics of the query features.

        The keys of the dict are ``probe/knn`` and the keys of `geometry` with the prefix
        ``probe/``. Collective: every process must call this.
        """
        parts = self._features(self._encoder, state)
        measured = geometry(*parts[1])
        accuracy = knn_accuracy(*parts[0], *parts[1], **self._options)
        return {"probe/knn": accuracy} | {f"probe/{name}": v for name, v in measured.items()}

    def on_pixels(self) -> float:
        """Return the kNN accuracy of raw pixels in percent, a baseline for the encoder.

        Collective: every process must call this.
        """
        parts = self._features(self._pixels, None)
        return knn_accuracy(*parts[0], *parts[1], **self._options)

    def _features(
        self, extractor: FeatureExtractor, state: Any
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the features and labels of the bank, then those of the queries."""
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
    """Return effective rank, uniformity, tolerance and the fraction of dead dimensions of features.

    At most `EXAMPLES` examples are evaluated. Uniformity is omitted for fewer than two examples,
    and tolerance if no two examples share a class.
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
