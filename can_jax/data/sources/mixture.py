"""The source `mixture`, which samples from several sources with a weight for each."""

from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from can_jax.data.sources.base import Examples, Fingerprint, Source
from can_jax.data.sources.block import Block, merge
from can_jax.data.sources.labels import Numbering, distinct, known_labels, names_of


class MixtureSource(Source):
    """A source that concatenates the examples of several sources, which are called its parts.

    No two parts share a class. A class name consists of the index of the part and the name of the
    class in this part, such as `0/cat`. For a part without class names, the class name consists of
    the index of the part and the label, such as `1/label 7`.

    Labels stored in records are used only if the part has class names, or an index that contains
    the labels. If a part has neither class names nor an index with labels, the labels in its
    records count as unknown, and a warning is logged.

    Args:
        parts: The sources of which the mixture consists.
        weights: The sampling weight of each part; only the ratios of the weights matter.

    Raises:
        UserError: A label of a part is not a valid index into its class names.
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
        """Return the encoded images of some examples, and their labels; a damaged record has an
        empty image."""
        images, labels = [b""] * len(examples), np.full(len(examples), -1, np.int32)
        for i, rows, within in self._by_part(examples):
            part_images, part_labels = self.parts[i].read(within)
            for row, image in zip(rows, part_images, strict=True):
                images[row] = image
            labels[rows] = self._numberings[i](part_labels)
        return images, labels

    def read_block(self, examples: Examples) -> Block:
        """Return the encoded images of some examples in one buffer, and their labels."""
        blocks, all_rows = [], []
        for i, rows, within in self._by_part(examples):
            block = self.parts[i].read_block(within)
            labels = self._numberings[i](block.labels).astype(np.int32)
            blocks.append(block._replace(labels=labels))
            all_rows.append(rows)
        return merge(blocks, all_rows)

    def _by_part(self, examples: Examples) -> Iterator[tuple[int, np.ndarray, Examples]]:
        """Yield the index of each part that contains some of the examples, the positions of these
        examples in ``examples``, and their indices in the part."""
        owners = np.searchsorted(self._starts, examples, side="right") - 1
        for i in np.unique(owners).tolist():
            rows = np.flatnonzero(owners == i)
            yield i, rows, examples[rows] - self._starts[i]

    def describe(self, example: int) -> str:
        """Return a phrase that states where an example is stored, for messages."""
        i = int(np.searchsorted(self._starts, example, side="right")) - 1
        return self.parts[i].describe(example - int(self._starts[i]))

    def fingerprint(self) -> Fingerprint:
        """Return the fingerprint and the normalized weight of each part."""
        shares = [round(weight / sum(self.weights), 6) for weight in self.weights]
        return {"parts": [part.fingerprint() for part in self.parts], "weights": shares}

    def same_files(self, other: Source) -> bool:
        """Return whether another source is a mixture whose parts read the same files as the parts
        of this mixture."""
        if len(self.parts) != len(other.parts):
            return False
        pairs = zip(self.parts, other.parts, strict=True)
        return all(part.same_files(another) for part, another in pairs)


def _classes(i: int, part: Source) -> tuple[np.ndarray, list[str]]:
    """Return the class labels of a part in ascending order, and the name of each class.

    Raises:
        UserError: A label of the part is not a valid index into its class names.
    """
    labels = known_labels(part)
    occurring = distinct(labels) if labels is not None else np.zeros(0, np.int32)
    if part.label_names:
        names_of(occurring, part.label_names, f"part {i} of config.data.mixture")  # checks labels
        return np.arange(len(part.label_names)), list(part.label_names)
    if labels is None:
        logging.warning(
            "part %d of config.data.mixture: labels in its records count as unknown; to use them, "
            "build an index of the part with python -m can_jax.data.index", i,
        )  # fmt: skip
    return occurring, [f"label {label}" for label in occurring.tolist()]
