"""`mixture`: several sources in one stream, each with a weight."""

from collections.abc import Sequence

import numpy as np

from can_jax.data.source import EncodedSource, Examples


class MixtureSource:
    """Sources one after the other: the examples of each count on from those before it.

    Labels count on as well, from part to part, so that no two classes share one.

    Args:
        parts: the sources.
        weights: how often each is drawn from; their ratios count.
    """

    labels = None

    def __init__(self, parts: Sequence[EncodedSource], weights: Sequence[float]):
        self.parts, self.weights = tuple(parts), tuple(weights)
        self.sizes = tuple(part.examples for part in parts)
        self._starts = np.cumsum([0, *self.sizes])
        self._label_starts = np.cumsum([0, *(len(part.label_names) for part in parts)])
        self.label_names = tuple(name for part in parts for name in part.label_names)

    @property
    def examples(self) -> int:
        """Of all parts."""
        return int(self._starts[-1])

    def read(self, examples: Examples) -> tuple[list[bytes], np.ndarray]:
        """Encoded images and labels; what cannot be read is empty."""
        images, labels = [b""] * len(examples), np.full(len(examples), -1, np.int32)
        owners = np.searchsorted(self._starts, examples, side="right") - 1
        for number, part in enumerate(self.parts):
            rows = np.flatnonzero(owners == number)
            found, known = part.read(examples[rows] - self._starts[number])
            for row, image in zip(rows, found, strict=True):
                images[row] = image
            labels[rows] = np.where(known >= 0, known + self._label_starts[number], -1)
        return images, labels

    def describe(self, example: int) -> str:
        """Where an example lies."""
        number = int(np.searchsorted(self._starts, example, side="right")) - 1
        return self.parts[number].describe(example - int(self._starts[number]))
