"""The interface of data sources, a source of in-memory images, and selections of examples."""

import abc
import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8, UInt64

from can_jax.data.decoding.array_bytes import encode_array
from can_jax.data.sources.block import Block, pack
from can_jax.data.storage.digest import digest_of_bytes, digest_of_columns

Examples = Int[np.ndarray, " chosen"]  # indices of examples in a source
Fingerprint = dict[str, Any]  # JSON-serializable
SAMPLE = 256  # examples whose content the default fingerprint of a source covers


class Source(abc.ABC):
    """A data set with random access to its images, which are encoded (JPEG, PNG, …), or decoded and
    in memory.

    A subclass defines ``examples`` and ``read``. An example must have the same image and label each
    time it is read. Several threads can call ``read`` at the same time.

    Attributes:
        labels: The label of each example, -1 if unknown; None if only ``read`` returns labels.
        label_names: The class names, indexed by label; empty if unknown.
        images: All decoded images as one array; None if the images are not in memory, or differ in
            size. If ``images`` is set, ``labels`` is set as well.
        parts: The sources of which a mixture consists, in the order of their examples; empty for
            any other source.
        weights: The sampling weight of each part; only ratios matter.
        chunks_ahead: The number of chunks of images that the input pipeline reads ahead, to hide
            the latency of remote storage; 0 for local data.
    """

    labels: Int[np.ndarray, " examples"] | None = None
    label_names: tuple[str, ...] = ()
    images: UInt8[np.ndarray, "examples height width channels"] | None = None
    parts: "tuple[Source, ...]" = ()
    weights: tuple[float, ...] = (1.0,)
    chunks_ahead: int = 0

    @property
    @abc.abstractmethod
    def examples(self) -> int:
        """The number of examples in the source."""

    @abc.abstractmethod
    def read(self, examples: Examples) -> tuple[list[bytes], np.ndarray]:
        """Return the encoded images of some examples, and their labels as int32; a damaged record
        has an empty image."""

    def read_block(self, examples: Examples) -> Block:
        """Return the images and labels that ``read`` returns, with all encoded images in one
        buffer.

        A subclass can override this method to read directly into the buffer.
        """
        return pack(*self.read(examples))

    def describe(self, example: int) -> str:
        """Return a phrase that states where an example is stored, for messages."""
        return f"example {example}"

    @property
    def stored_labels(self) -> Int[np.ndarray, " examples"] | None:
        """The label of each example as stored in an index, -1 if unknown; None without an index.
        The labels in an index can differ from those that ``read`` returns. If ``labels`` is None,
        `can_jax.data.sources.labels.known_labels` uses the labels in the index, provided that they
        agree with a sample of records.
        """
        return None

    @property
    def content_digests(self) -> UInt64[np.ndarray, " examples"] | None:
        """The hash of each encoded image as an integer, 0 where unknown; None if no hashes are
        stored."""
        return None

    def factors(self) -> dict[str, np.ndarray]:
        """Return the known generating factors of all examples, by name; an empty dict if no factors
        are known.

        Integer factors are treated as class labels, and all other factors as continuous values.
        `can_jax.evaluate` measures the disentanglement of features with respect to these factors.
        """
        return {}

    def byte_sizes(self, examples: Examples) -> Int[np.ndarray, " chosen"] | None:
        """Return the size of each encoded image in bytes, -1 if unknown; None if it would take long
        to determine the sizes."""
        return None

    def fingerprint(self) -> Fingerprint:
        """Return JSON-serializable values by which a resumed run detects that the data has changed.

        By default, the fingerprint consists of the number of examples, a hash of a sample of the
        images, and a hash of all labels. If ``labels`` is None, only the labels of the sampled
        images are hashed.
        """
        count = min(SAMPLE, self.examples)
        images, labels = self.read(np.linspace(0, self.examples - 1, count).astype(np.int64))
        digests = np.array([int.from_bytes(digest_of_bytes(image)) for image in images], np.uint64)
        known = labels if self.labels is None else self.labels
        content = {"content": digest_of_columns(digests), "labels": digest_of_columns(known)}
        return {"examples": self.examples} | content

    def same_files(self, other: "Source") -> bool:
        """Return whether another source is known to read the same files as this source, in the same
        order."""
        return self is other

    def selection(
        self,
        examples: Examples,
        labels: Int[np.ndarray, " chosen"],
        label_names: tuple[str, ...],
    ) -> "Source":
        """Return a source that contains only the selected examples, with new labels.

        Args:
            examples: The indices of the selected examples in this source.
            labels: The new label of each selected example.
            label_names: The class names, indexed by the new labels.
        """
        return SelectedSource(self, examples, labels, label_names)


class SelectedSource(Source):
    """A selection of the examples of another source, with new labels.

    Args:
        source: The source that contains the encoded images.
        chosen: The indices of the selected examples in ``source``.
        labels: The new label of each selected example.
        label_names: The class names, indexed by the new labels.
    """

    def __init__(
        self,
        source: Source,
        chosen: Examples,
        labels: Int[np.ndarray, " chosen"],
        label_names: tuple[str, ...],
    ):
        self._source, self._chosen = source, chosen
        self.chunks_ahead = source.chunks_ahead
        self.labels, self.label_names = labels, label_names

    @property
    def examples(self) -> int:
        """The number of selected examples."""
        return len(self._chosen)

    def read(self, examples: Examples) -> tuple[list[bytes], np.ndarray]:
        """Return the encoded images of some examples, and their new labels; a damaged record has an
        empty image."""
        assert self.labels is not None
        return self._source.read(self._chosen[examples])[0], self.labels[examples]

    def read_block(self, examples: Examples) -> Block:
        """Return the encoded images of some examples in one buffer, and their new labels."""
        assert self.labels is not None
        labels = self.labels[examples].astype(np.int32)
        return self._source.read_block(self._chosen[examples])._replace(labels=labels)

    def describe(self, example: int) -> str:
        """Return a phrase that states where an example is stored, for messages."""
        return self._source.describe(int(self._chosen[example]))


@dataclasses.dataclass(frozen=True)
class ArraySource(Source):
    """A source of decoded images of the same size, in memory.

    Attributes:
        images: The images, uint8 (examples, height, width, channels).
        labels: The labels, int32 (examples,); -1 if unknown.
        label_names: The class names, indexed by label; empty if unknown.
        files: The paths of the files from which the images were read; empty if they were not read
            from files.
    """

    images: UInt8[np.ndarray, "examples height width channels"] = dataclasses.field()
    labels: Int[np.ndarray, " examples"] = dataclasses.field()
    label_names: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def examples(self) -> int:
        """The number of examples in the source."""
        return len(self.images)

    def read(self, examples: Examples) -> tuple[list[bytes], np.ndarray]:
        """Return images encoded by `encode_array`, and their labels. A mixture reads its parts
        with this method."""
        return [encode_array(self.images[i]) for i in examples], self.labels[examples]

    def describe(self, example: int) -> str:
        """Return a phrase that identifies an image in messages by its index."""
        return f"array, image {example}"

    def fingerprint(self) -> Fingerprint:
        """Return a dict of the number of images, a hash of all images, and a hash of all labels."""
        content, labels = digest_of_columns(self.images), digest_of_columns(self.labels)
        return {"examples": self.examples, "content": content, "labels": labels}

    def same_files(self, other: Source) -> bool:
        """Return whether another source is this source, or was read from the same files."""
        if self is other:
            return True
        return isinstance(other, ArraySource) and bool(self.files) and self.files == other.files

    def selection(
        self,
        examples: Examples,
        labels: Int[np.ndarray, " chosen"],
        label_names: tuple[str, ...],
    ) -> Source:
        """Return a source of the selected images, which shares the array of this source if all
        images are selected in order."""
        whole = np.array_equal(examples, np.arange(self.examples))
        return ArraySource(self.images if whole else self.images[examples], labels, label_names)
