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

SIDE = 32  # The maximum height and width to which images are resized for the raw-pixel features.
MOST = 100_000  # The maximum number of examples for which `auto` computes the baselines.
Features = Float[np.ndarray, "examples width"]


@dataclasses.dataclass(frozen=True)
class _Pixels:
    """A stand-in for `PretrainedEncoder` whose features are raw pixels."""

    config: ConfigDict
    parameters: Any = None

    def features(self, parameters: Any, images: Any) -> Any:
        """Return the flattened pixels of images, resized to at most `SIDE` pixels per side."""
        return pixels(SIDE)(parameters, images)


def baselines(context: EvalContext, pair: Pair) -> Iterator[tuple[str, Features, Features]]:
    """Yield the name, the training features and the test features of each baseline.

    Collective: every process must consume the whole iterator.

    Args:
        context: The evaluation context, whose setting ``baselines`` can disable the baselines.
        pair: The training and test sets, whose images are not read yet.
    """
    size = len(pair.train.examples) + len(pair.test.examples)
    setting = context.config.baselines
    if setting == "off" or (setting == "auto" and size > MOST):
        return
    parts = (pair.train, pair.test)
    if context.untrained is not None:
        encoder = context.untrained()
        read = SplitFeatureExtractor(encoder, context.mesh, context.config.batch_size)
        train, test = (encoder.select(read(p).outputs, context.config.features) for p in parts)
        yield "untrained", train, test
    read = SplitFeatureExtractor(
        _Pixels(context.subject.config), context.mesh, context.config.batch_size
    )
    train, test = (read(part).outputs for part in parts)
    yield "pixels", train, test
