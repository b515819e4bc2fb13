"""The interface of a source, the source of arrays in memory, and selections of a source."""

import abc
import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8, UInt64

from can_jax.data.decoding.array_bytes import encode_array
from can_jax.data.storage.digest import digest_of_bytes, digest_of_columns

Examples = Int[np.ndarray, " chosen"]  # indices of examples in a source
Fingerprint = dict[str, Any]  # JSON-serializable
SAMPLE = 256  # examples whose content the default fingerprint of a source covers


class Source(abc.ABC):
    """Images with random access, encoded (JPEG, PNG, WebP, GIF, …) or decoded.

    A subclass defines ``examples`` and ``read``. Each read of an example returns the same image and
    label. Several threads read at the same time.

    Attributes:
        labels: The label of each example, -1 where unknown; None if only ``read`` returns labels.
        label_names: The names of the classes; empty if unknown.
        images: The decoded images, if they are of one size and in memory; else None. With images in
            memory, ``labels`` are in memory, too.
        parts: The sources of a mixture, whose examples follow each other; else empty.
        weights: The sampling weight of each part.
        chunks_ahead: The number of chunks of images to read ahead, to hide the latency of a store.
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
        """The number of examples."""

    @abc.abstractmethod
    def read(self, examples: Examples) -> tuple[list[bytes], np.ndarray]:
        """Return the encoded images, and their labels as int32. The image of a damaged record is
        empty."""

    def describe(self, example: int) -> str:
        """Return the location of an example, for messages."""
        return f"example {example}"

    @property
    def stored_labels(self) -> Int[np.ndarray, " examples"] | None:
        """The labels that an index holds; None without an index.

        They may differ from those that ``read`` returns. `labels.known_labels` uses them if
        ``labels`` is None and they agree with a sample of records.
        """
        return None

    @property
    def content_digests(self) -> UInt64[np.ndarray, " examples"] | None:
        """The digest of each encoded image, 0 where unknown; None if they are not stored."""
        return None

    def byte_sizes(self, examples: Examples) -> Int[np.ndarray, " chosen"] | None:
        """Return the size of each encoded image in bytes; None if that requires reading them."""
        return None

    def fingerprint(self) -> Fingerprint:
        """Return values that change with the examples, by the keys of `fingerprint.WORDS`.

        A resumed run compares these values with the stored ones. By default they cover the number
        of examples, a sample of the images, and all labels; if ``labels`` is None, the labels of
        the sample only.
        """
        count = min(SAMPLE, self.examples)
        images, labels = self.read(np.linspace(0, self.examples - 1, count).astype(np.int64))
        digests = np.array([int.from_bytes(digest_of_bytes(image)) for image in images], np.uint64)
        known = labels if self.labels is None else self.labels
        content = {"content": digest_of_columns(digests), "labels": digest_of_columns(known)}
        return {"examples": self.examples} | content

    def same_files(self, other: "Source") -> bool:
        """Return whether another source is known to read the same files in the same order."""
        return self is other

    def selection(
        self,
        examples: Examples,
        labels: Int[np.ndarray, " chosen"],
        label_names: tuple[str, ...],
    ) -> "Source":
        """Return a source of some examples, with other labels.

        Args:
            examples: The indices of the examples in this source.
            labels: The label of each selected example.
            label_names: The names of the classes.
        """
        return SelectedSource(self, examples, labels, label_names)


class SelectedSource(Source):
    """A selection of the examples of an encoded source, with other labels.

    Args:
        source: The source that holds the images.
        chosen: The indices of the selected examples in the source.
        labels: The label of each selected example.
        label_names: The names of the classes.
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
        """Return encoded images and labels; the image of a damaged record is empty."""
        assert self.labels is not None
        return self._source.read(self._chosen[examples])[0], self.labels[examples]

    def describe(self, example: int) -> str:
        """Return the location of an example, for messages."""
        return self._source.describe(int(self._chosen[example]))


@dataclasses.dataclass(frozen=True)
class ArraySource(Source):
    """A source of decoded images of one size, in memory.

    Attributes:
        images: The images, uint8 (examples, height, width, channels).
        labels: The labels, int32 (examples,); -1 where unknown.
        label_names: The names of the classes; empty if unknown.
        files: The files from which the images were read, if any.
    """

    images: UInt8[np.ndarray, "examples height width channels"] = dataclasses.field()
    labels: Int[np.ndarray, " examples"] = dataclasses.field()
    label_names: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(self.images)

    def read(self, examples: Examples) -> tuple[list[bytes], np.ndarray]:
        """Return encoded images and labels, for mixtures with files."""
        return [encode_array(self.images[i]) for i in examples], self.labels[examples]

    def describe(self, example: int) -> str:
        """Return the location of an example, for messages."""
        return f"array, image {example}"

    def fingerprint(self) -> Fingerprint:
        """Return the number of images, and digests of all of them and of the labels."""
        content, labels = digest_of_columns(self.images), digest_of_columns(self.labels)
        return {"examples": self.examples, "content": content, "labels": labels}

    def same_files(self, other: Source) -> bool:
        """Return whether both were read from the same files."""
        if self is other:
            return True
        return isinstance(other, ArraySource) and bool(self.files) and self.files == other.files

    def selection(
        self,
        examples: Examples,
        labels: Int[np.ndarray, " chosen"],
        label_names: tuple[str, ...],
    ) -> Source:
        """Return a source of some of the images; a selection of all images is not a copy."""
        whole = len(examples) == self.examples
        return ArraySource(self.images if whole else self.images[examples], labels, label_names)
