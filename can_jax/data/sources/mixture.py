"""The source `mixture`: several sources in one stream, each with a weight."""

from collections.abc import Sequence

import numpy as np
from absl import logging

from can_jax.data.sources.base import Examples, Fingerprint, Source
from can_jax.data.sources.labels import Numbering, distinct, known_labels
from can_jax.utils.errors import UserError


class MixtureSource(Source):
    """A source that concatenates others: the examples of each follow those of earlier parts.

    No two parts share a class. The name of a class consists of its part and its name there, such as
    `0/cat`. It is `1/label 7` if the part has no names, so that it is the same class in every
    split.

    Labels stored in records are used if the part has names or an index. Otherwise they are unknown,
    which is logged.

    Args:
        parts: The sources.
        weights: The sampling weight of each part; only their ratios matter.

    Raises:
        UserError: A label of a part exceeds its list of names.
    """

    def __init__(self, parts: Sequence[Source], weights: Sequence[float]):
        self.parts, self.weights = tuple(parts), tuple(weights)
        self.chunks_ahead = max(part.chunks_ahead for part in parts)
        self.sizes = tuple(part.examples for part in parts)
        self._starts = np.cumsum([0, *self.sizes])
        self._numberings: list[Numbering] = []
        names: list[str] = []
        for i, part in enumerate(parts):
            labels, class_names = _classes(i, part)
            self._numberings.append(Numbering(labels, len(names) + np.arange(len(labels))))
            names += [f"{i}/{name}" for name in class_names]
        self.label_names = tuple(names)

    @property
    def examples(self) -> int:
        """The number of examples in all parts."""
        return int(self._starts[-1])

    def read(self, examples: Examples) -> tuple[list[bytes], np.ndarray]:
        """Return encoded images and labels; the image of a damaged record is empty."""
        images, labels = [b""] * len(examples), np.full(len(examples), -1, np.int32)
        owners = np.searchsorted(self._starts, examples, side="right") - 1
        for i, part in enumerate(self.parts):
            rows = np.flatnonzero(owners == i)
            part_images, part_labels = part.read(examples[rows] - self._starts[i])
            for row, image in zip(rows, part_images, strict=True):
                images[row] = image
            labels[rows] = self._numberings[i](part_labels)
        return images, labels

    def describe(self, example: int) -> str:
        """Return the location of an example, for messages."""
        i = int(np.searchsorted(self._starts, example, side="right")) - 1
        return self.parts[i].describe(example - int(self._starts[i]))

    def fingerprint(self) -> Fingerprint:
        """Return the fingerprint of each part, and the share of each."""
        shares = [round(weight / sum(self.weights), 6) for weight in self.weights]
        return {"parts": [part.fingerprint() for part in self.parts], "weights": shares}

    def same_files(self, other: Source) -> bool:
        """Return whether both have the same parts."""
        if len(self.parts) != len(other.parts):
            return False
        pairs = zip(self.parts, other.parts, strict=True)
        return all(part.same_files(another) for part, another in pairs)


def _classes(i: int, part: Source) -> tuple[np.ndarray, list[str]]:
    """Return the used labels of a part, ascending, and the name of each."""
    labels = known_labels(part)
    occurring = distinct(labels) if labels is not None else np.zeros(0, np.int32)
    if part.label_names:
        if len(occurring) and occurring[-1] >= len(part.label_names):
            raise UserError(
                f"part {i} of config.data.mixture has the label {occurring[-1]}, but only "
                f"{len(part.label_names)} label_names: give each class a name, or none"
            )
        return np.arange(len(part.label_names)), list(part.label_names)
    if labels is None:
        logging.warning(
            "part %d of config.data.mixture: labels in its records count as unknown; "
            "python -m can_jax.data.index builds an index with them", i,
        )  # fmt: skip
    return occurring, [f"label {label}" for label in occurring.tolist()]
