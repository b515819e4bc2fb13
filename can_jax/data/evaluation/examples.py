"""Evaluation images: center crops in a fixed order, every example exactly once."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8
from ml_collections import ConfigDict

from can_jax.data.pipeline import chunks
from can_jax.data.pipeline.views import CenterView
from can_jax.data.sources.base import Source
from can_jax.utils.tensorflow import tensorflow


class EvaluationBatch(NamedTuple):
    """The rows of a batch that this process loads.

    Attributes:
        images: The center crops; zeros for padding.
        label: The label of each image; -1 where unknown.
        valid: False for padding, for images that cannot be decoded, and for rows excluded for want
            of a label.
        example: The index of each example in its source; -1 for padding.
    """

    images: UInt8[np.ndarray, "rows height width channels"]
    label: Int[np.ndarray, " rows"]
    valid: Bool[np.ndarray, " rows"]
    example: Int[np.ndarray, " rows"]


class EvaluationSet:
    """A fixed set of up to ``count`` examples, spread evenly over a source.

    Args:
        config: The resolved configuration.
        source: The source that holds the images.
        count: The number of examples; all of them if the source has fewer.
        labeled: Whether to exclude examples without a label.
        only: The indices of the examples to use, in this order; overrides ``count``.
    """

    def __init__(
        self,
        config: ConfigDict,
        source: Source,
        count: int,
        *,
        labeled: bool,
        only: Int[np.ndarray, " examples"] | None = None,
    ):
        self._config, self._source, self._labeled = config, source, labeled
        if only is not None:
            self._examples = only
        elif labeled and source.labels is not None:
            with_label = np.flatnonzero(source.labels >= 0)
            self._examples = with_label[spread(len(with_label), count)]
        else:
            self._examples = spread(source.examples, count)

    def __len__(self) -> int:
        return len(self._examples)

    def batches(
        self, batch_size: int, rows: Int[np.ndarray, " local"]
    ) -> Iterator[EvaluationBatch]:
        """Yield this process's rows of every batch.

        Args:
            batch_size: The size of the global batch.
            rows: The rows of the global batch to load, ascending.
        """
        tf = tensorflow()
        local = len(rows)
        ranks = np.arange(len(self._examples))
        mine = self._examples[np.isin(ranks % batch_size, rows)].astype(np.int64)
        config = self._config
        dataset = chunks.batches(
            self._source,
            CenterView.from_config(config),
            tf.data.Dataset.from_tensor_slices((mine, mine)),
            local,
            config.data.threads,
        )
        loaded = chunks.elements(dataset)
        for start in range(0, len(self._examples), batch_size):
            filled = int(np.searchsorted(rows, len(self._examples) - start))
            shape = (local, *config.data.image_size, config.data.channels)
            images, label = np.zeros(shape, np.uint8), np.full(local, -1, np.int32)
            valid, index = np.zeros(local, bool), np.full(local, -1, np.int32)
            if filled:
                index[:filled] = self._examples[start + rows[:filled]]
                part = next(loaded)
                images[:filled], label[:filled] = part["views"][:, 0], part["label"]
                valid[:filled] = (part["attempt"] == 0) & (
                    (part["label"] >= 0) | (not self._labeled)
                )
            yield EvaluationBatch(images, label, valid, index)

    def images(self) -> UInt8[np.ndarray, "examples height width channels"]:
        """Return all valid images in memory."""
        (batch,) = self.batches(len(self), np.arange(len(self)))
        return batch.images[batch.valid]


def spread(examples: int, count: int) -> Int[np.ndarray, " chosen"]:
    """Return up to ``count`` evenly spread indices below ``examples``."""
    chosen = min(examples, count)
    return (np.arange(chosen, dtype=np.int64) * 2 + 1) * examples // max(1, 2 * chosen)
