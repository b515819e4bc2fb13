"""Features of two baselines for an evaluation: the untrained encoder, and raw pixels."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from can_jax.data.evaluation.pairs import Pair
from can_jax.evaluate.split_features import SplitFeatureExtractor
from can_jax.evaluate.task import EvalContext
from can_jax.features.pixels import pixels

SIDE = 32  # The most pixels along a side of an image whose pixels are the features.
MOST = 100_000  # The most examples for which baselines are computed by default.
Features = Float[np.ndarray, "examples width"]


@dataclasses.dataclass(frozen=True)
class _Pixels:
    """A stand-in for `PretrainedEncoder` whose features are raw pixels."""

    config: ConfigDict
    parameters: Any = None

    def features(self, parameters: Any, images: Any) -> Any:
        """Return the flattened pixels of images, resized to at most `SIDE` pixels per side."""
        return pixels(SIDE)(parameters, images)


def baselines(task: EvalContext, pair: Pair) -> Iterator[tuple[str, Features, Features]]:
    """Yield the name, the training features and the test features of each baseline.

    Collective: every process must consume the whole iterator.

    Args:
        task: The evaluation context, whose setting ``baselines`` can disable the baselines.
        pair: The training and test sets, whose images are not read yet.
    """
    size = len(pair.train.examples) + len(pair.test.examples)
    wanted = task.config.baselines
    if wanted == "off" or (wanted == "auto" and size > MOST):
        return
    parts = (pair.train, pair.test)
    if task.untrained is not None:
        subject = task.untrained()
        read = SplitFeatureExtractor(subject, task.mesh, task.config.batch_size)
        train, test = (subject.select(read(p).outputs, task.config.features) for p in parts)
        yield "untrained", train, test
    read = SplitFeatureExtractor(_Pixels(task.subject.config), task.mesh, task.config.batch_size)
    train, test = (read(part).outputs for part in parts)
    yield "pixels", train, test
