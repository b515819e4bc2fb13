"""The protocol of sources of encoded images, and the source of arrays in memory."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from can_jax.data.decoding.decode import encode_array

Examples = Int[np.ndarray, " chosen"]  # indices of examples in a source


@runtime_checkable
class EncodedSource(Protocol):
    """A source of encoded images (JPEG, PNG, WebP, GIF, …) with random access."""

    @property
    def examples(self) -> int:
        """The number of examples."""
        ...

    @property
    def labels(self) -> Int[np.ndarray, " examples"] | None:
        """The label of each example, -1 where unknown; None if only each record holds its label."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes; empty if unknown."""
        ...

    def read(self, examples: Examples) -> tuple[list[bytes], np.ndarray]:
        """Return the encoded images, and their labels as int32. The image of a damaged record is
        empty."""
        ...

    def describe(self, example: int) -> str:
        """Return the location of an example, for messages."""
        ...


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """A source of decoded images of one size, in memory.

    Attributes:
        images: The images, uint8 (examples, height, width, channels).
        labels: The labels, int32 (examples,); -1 where unknown.
        label_names: The names of the classes; empty if unknown.
        files: The files from which the images were read, if any.
    """

    images: UInt8[np.ndarray, "examples height width channels"]
    labels: Int[np.ndarray, " examples"]
    label_names: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(self.images)

    def read(self, examples: Examples) -> tuple[list[bytes], np.ndarray]:
        """Return encoded images and labels as `EncodedSource.read` does; mixtures with files use
        it."""
        return [encode_array(self.images[i]) for i in examples], self.labels[examples]

    def describe(self, example: int) -> str:
        """Return the location of an example, for messages."""
        return f"array, image {example}"


Source = ArraySource | EncodedSource
