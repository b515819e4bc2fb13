"""The label-free probe, which measures how much of the feature space the encoder uses."""

from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from can_jax.data.evaluation.examples import EvaluationSet
from can_jax.data.sources.base import Source
from can_jax.distributed.mesh import batch_shards
from can_jax.features.extractor import FeatureExtractor
from can_jax.train.knn_probe import BATCH_SIZE, EXAMPLES, geometry
from can_jax.train.step import Step

RANK = "probe/effective_rank"


class HealthProbe:
    """A probe that measures effective rank, uniformity and dead dimensions on training images.

    Args:
        config: The resolved configuration. The probe uses at most ``min(config.probe.bank,
            EXAMPLES)`` images.
        step: The train step, whose method `features` computes the features.
        source: The source of the training images.
        mesh: The device mesh on which features are computed.
    """

    def __init__(self, config: ConfigDict, step: Step, source: Source, mesh: Mesh):
        count = min(config.probe.bank, EXAMPLES)
        self._examples = EvaluationSet(config, source, count, labeled=False)
        self._extract = FeatureExtractor(step.features, mesh, BATCH_SIZE * batch_shards(mesh))

    def __call__(self, state: Any) -> dict[str, float]:
        """Return a dict of metrics, such as ``probe/uniformity``.

        Collective: every process must call this.
        """
        features = self._extract(state, self._examples).features
        own = np.arange(len(features))  # Without labels each image is a class of its own.
        return {f"probe/{name}": value for name, value in geometry(features, own).items()}


def described(metrics: dict[str, Any]) -> str:
    """Format the metrics of the label-free probe for a status line."""
    uniformity = metrics.get("probe/uniformity", 0.0)
    dead = 100 * metrics["probe/dead_dimensions"]
    return (
        f"effective rank {metrics[RANK]:.1f}, uniformity {uniformity:.2f}, {dead:.0f}% dead "
        "dimensions"
    )
