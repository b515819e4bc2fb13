"""`mixture`: several sources in one stream, each with a weight."""

from collections.abc import Sequence

import numpy as np
from absl import logging

from can_jax.data.sources.base import EncodedSource, Examples
from can_jax.data.sources.labels import Numbering, distinct, known_labels
from can_jax.utils.errors import UserError


class MixtureSource:
    """A source that joins others: the examples of each are numbered after those before it.

    No two parts share a class. A class is called by its part and its name there, such as `0/cat`,
    or `1/label 7` where a part has no names, so that it is the same class in every split. Labels
    that are stored in records are used where the part has names or an index; elsewhere they are
    unknown, which is logged.

    Args:
        parts: The sources.
        weights: How often each is drawn from; their ratios count.

    Raises:
        UserError: A part has labels beyond its names.
    """

    labels = None

    def __init__(self, parts: Sequence[EncodedSource], weights: Sequence[float]):
        self.parts, self.weights = tuple(parts), tuple(weights)
        self.sizes = tuple(part.examples for part in parts)
        self._starts = np.cumsum([0, *self.sizes])
        self._numberings: list[Numbering] = []
        names: list[str] = []
        for number, part in enumerate(parts):
            labels, called = _classes(number, part)
            self._numberings.append(Numbering(labels, len(names) + np.arange(len(labels))))
            names += [f"{number}/{name}" for name in called]
        self.label_names = tuple(names)

    @property
    def examples(self) -> int:
        """Of all parts."""
        return int(self._starts[-1])

    def read(self, examples: Examples) -> tuple[list[bytes], np.ndarray]:
        """Encoded images and labels; a damaged record is empty."""
        images, labels = [b""] * len(examples), np.full(len(examples), -1, np.int32)
        owners = np.searchsorted(self._starts, examples, side="right") - 1
        for number, part in enumerate(self.parts):
            rows = np.flatnonzero(owners == number)
            found, known = part.read(examples[rows] - self._starts[number])
            for row, image in zip(rows, found, strict=True):
                images[row] = image
            labels[rows] = self._numberings[number](known)
        return images, labels

    def describe(self, example: int) -> str:
        """Where an example lies."""
        number = int(np.searchsorted(self._starts, example, side="right")) - 1
        return self.parts[number].describe(example - int(self._starts[number]))


def _classes(number: int, part: EncodedSource) -> tuple[np.ndarray, list[str]]:
    """Return the labels of a part that are used, ascending, and the name of each."""
    known = known_labels(part)
    there = distinct(known) if known is not None else np.zeros(0, np.int32)
    if part.label_names:
        if len(there) and there[-1] >= len(part.label_names):
            raise UserError(
                f"part {number} of config.data.mixture has the label {there[-1]}, but only "
                f"{len(part.label_names)} label_names: give each class a name, or none"
            )
        return np.arange(len(part.label_names)), list(part.label_names)
    if known is None:
        logging.warning(
            "part %d of config.data.mixture: labels that its records may have count as unknown; "
            "python -m can_jax.data.index makes an index that holds them", number,
        )  # fmt: skip
    return there, [f"label {label}" for label in there.tolist()]
