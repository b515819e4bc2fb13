"""Batches of center crops for evaluation, in a fixed order and with every example exactly once."""

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
    """One process's rows of an evaluation batch, padded to a fixed number of rows.

    Attributes:
        images: The center crops, uint8 (rows, height, width, channels); zeros for padding.
        label: The label of each image; -1 for padding and unlabeled images.
        valid: False for padding, for images that cannot be decoded, and for unlabeled images if
            labels are required.
        example: The index of each example in its source; -1 for padding.
    """

    images: UInt8[np.ndarray, "rows height width channels"]
    label: Int[np.ndarray, " rows"]
    valid: Bool[np.ndarray, " rows"]
    example: Int[np.ndarray, " rows"]


class EvaluationSet:
    """A fixed set of evaluation examples, by default spread evenly over a data source.

    Args:
        config: The resolved configuration, of which `config.data` is used.
        source: The data source from which to read the images.
        count: The maximum number of examples to select.
        labeled: Whether labels are required. If ``labeled`` is True, examples without a label in
            ``source.labels`` are not selected, and `batches` marks unlabeled examples as invalid.
        only: The indices of the examples to use, in their order of use; None to select up to
            ``count`` examples.
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
            batch_size: The number of examples in the global batch.
            rows: The indices of the rows of the global batch to load, in ascending order.
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
        """Return the center crops of all valid examples as one array."""
        (batch,) = self.batches(len(self), np.arange(len(self)))
        return batch.images[batch.valid]


def spread(examples: int, count: int) -> Int[np.ndarray, " chosen"]:
    """Return at most ``count`` indices, spread evenly over the range from 0 to ``examples`` - 1."""
    chosen = min(examples, count)
    return (np.arange(chosen, dtype=np.int64) * 2 + 1) * examples // max(1, 2 * chosen)
