"""The probe that runs while pretraining: kNN accuracy on a labelled split."""

from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from can_jax.data.loader import evaluation_images
from can_jax.data.source import Source, open_source
from can_jax.errors import UserError
from can_jax.evaluate.features import FeatureExtractor
from can_jax.evaluate.knn import knn_accuracy
from can_jax.step import Step

BATCH_SIZE = 256  # images encoded at a time
WITHOUT = "to train without a probe set config.probe.every_steps=0"


class KnnProbe:
    """Classifies `probe.queries` images of `probe.split` by `probe.bank` images of `data.split`.

    Raises:
        UserError: one of the two has no labelled image.
    """

    def __init__(self, config: ConfigDict, step: Step, bank: Source, mesh: Mesh):
        settings = config.probe
        try:
            queries = open_source(config.data, settings.split)
        except UserError as error:
            raise UserError(f"probe: {error}; {WITHOUT}") from error
        self._bank = evaluation_images(config, bank, settings.bank, labelled=True)
        self._queries = evaluation_images(config, queries, settings.queries, labelled=True)
        for split, part in ((config.data.split, self._bank), (settings.split, self._queries)):
            if not len(part.labels):
                raise UserError(
                    f"probe: no labelled image in split {split!r} of config.data; {WITHOUT}"
                )
        self._features = FeatureExtractor(step.features, mesh, BATCH_SIZE)
        self._options = {"k": settings.k, "temperature": settings.temperature}

    def __call__(self, state: Any) -> float:
        """Accuracy on the encoder's features, in percent."""
        parts = (self._bank, self._queries)
        bank, queries = (self._features(state, part.images) for part in parts)
        return self._accuracy(bank, queries)

    def on_pixels(self) -> float:
        """Accuracy on raw pixels, in percent: what a representation has to beat."""
        parts = (self._bank.images, self._queries.images)
        bank, queries = (part.reshape(len(part), -1).astype(np.float32) for part in parts)
        return self._accuracy(bank, queries)

    def _accuracy(self, bank: np.ndarray, queries: np.ndarray) -> float:
        labels = (self._bank.labels, self._queries.labels)
        return knn_accuracy(bank, labels[0], queries, labels[1], **self._options)
