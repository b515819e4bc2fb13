"""Images as an evaluation sees them: centre crops in a fixed order, every example exactly once."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8
from ml_collections import ConfigDict

from can_jax.data.pipeline import chunks
from can_jax.data.pipeline.views import CentreView
from can_jax.data.sources.base import Source
from can_jax.utils.tensorflow import tensorflow


class EvaluationBatch(NamedTuple):
    """Rows of a batch. Where ``valid`` is false there is padding, or nothing that counts."""

    images: UInt8[np.ndarray, "rows height width channels"]
    label: Int[np.ndarray, " rows"]  # -1 where unknown
    valid: Bool[np.ndarray, " rows"]
    number: Int[np.ndarray, " rows"]  # of the example in its source; -1 for padding


class EvaluationSet:
    """Up to ``count`` examples spread evenly over a source, the same ones each time.

    Args:
        config: resolved.
        source: of the images.
        count: of examples; all of them if there are fewer.
        labelled: leave out what has no label.
        only: numbers of the examples, in this order, instead of a count of them.
    """

    def __init__(
        self,
        config: ConfigDict,
        source: Source,
        count: int,
        *,
        labelled: bool,
        only: Int[np.ndarray, " examples"] | None = None,
    ):
        self._config, self._source, self._labelled = config, source, labelled
        if only is not None:
            self._examples = only
        elif labelled and source.labels is not None:
            able = np.flatnonzero(source.labels >= 0)
            self._examples = able[spread(len(able), count)]
        else:
            self._examples = spread(source.examples, count)

    def __len__(self) -> int:
        return len(self._examples)

    def batches(
        self, batch_size: int, rows: Int[np.ndarray, " local"]
    ) -> Iterator[EvaluationBatch]:
        """Some rows of every batch. An image that cannot be decoded is not valid.

        Args:
            batch_size: of the global batch.
            rows: of it, ascending.
        """
        tf = tensorflow()
        local = len(rows)
        numbers = np.arange(len(self._examples))
        mine = self._examples[np.isin(numbers % batch_size, rows)].astype(np.int64)
        config = self._config
        dataset = chunks.batches(
            self._source,
            CentreView.from_config(config),
            tf.data.Dataset.from_tensor_slices((mine, mine)),
            local,
            config.data.threads,
        )
        loaded = chunks.elements(dataset)
        for start in range(0, len(self._examples), batch_size):
            there = int(np.searchsorted(rows, len(self._examples) - start))
            shape = (local, *config.data.image_size, config.data.channels)
            images, label = np.zeros(shape, np.uint8), np.full(local, -1, np.int32)
            valid, number = np.zeros(local, bool), np.full(local, -1, np.int32)
            if there:
                number[:there] = self._examples[start + rows[:there]]
                part = next(loaded)
                images[:there], label[:there] = part["views"][:, 0], part["label"]
                valid[:there] = (part["attempt"] == 0) & (
                    (part["label"] >= 0) | (not self._labelled)
                )
            yield EvaluationBatch(images, label, valid, number)

    def images(self) -> UInt8[np.ndarray, "examples height width channels"]:
        """All that are valid, in memory."""
        (batch,) = self.batches(len(self), np.arange(len(self)))
        return batch.images[batch.valid]


def spread(examples: int, count: int) -> Int[np.ndarray, " chosen"]:
    """Up to ``count`` numbers below ``examples``, evenly spread."""
    chosen = min(examples, count)
    return (np.arange(chosen, dtype=np.int64) * 2 + 1) * examples // max(1, 2 * chosen)
