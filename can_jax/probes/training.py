"""The probe that runs while pretraining: kNN accuracy on a labelled split."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from can_jax.data.evaluation import EvaluationSet
from can_jax.data.source import Source, open_source
from can_jax.errors import UserError
from can_jax.parallel.mesh import batch_shards
from can_jax.probes.features import FeatureExtractor
from can_jax.probes.knn import knn_accuracy
from can_jax.step import Step

BATCH_SIZE = 64  # images a device encodes at a time
PIXELS = 64  # along a side, where pixels themselves are the features
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
        self._parts = [
            (config.data.split, EvaluationSet(config, bank, settings.bank, labelled=True)),
            (settings.split, EvaluationSet(config, queries, settings.queries, labelled=True)),
        ]
        for split, examples in self._parts:
            _demand(len(examples), split)
        batch_size = BATCH_SIZE * batch_shards(mesh)
        self._encoder = FeatureExtractor(step.features, mesh, batch_size)
        self._pixels = FeatureExtractor(_pixels, mesh, batch_size)
        self._options = {"k": settings.k, "temperature": settings.temperature}

    def __call__(self, state: Any) -> float:
        """Accuracy on the encoder's features, in percent."""
        return self._accuracy(self._encoder, state)

    def on_pixels(self) -> float:
        """Accuracy on raw pixels, in percent: what a representation has to beat."""
        return self._accuracy(self._pixels, None)

    def _accuracy(self, extractor: FeatureExtractor, state: Any) -> float:
        found = []
        for split, examples in self._parts:
            found.append(extractor(state, examples))
            _demand(len(found[-1].labels), split)
        return knn_accuracy(*found[0][:2], *found[1][:2], **self._options)


def _demand(labelled: int, split: str) -> None:
    if not labelled:
        raise UserError(f"probe: no labelled image in split {split!r} of config.data; {WITHOUT}")


def _pixels(state: None, images: Any) -> Any:
    """Raw pixels as features, of large images at most `PIXELS` along each side."""
    count, *size, channels = images.shape
    small = (count, *(min(side, PIXELS) for side in size), channels)
    return jax.image.resize(images.astype(jnp.float32), small, "linear").reshape(count, -1)
