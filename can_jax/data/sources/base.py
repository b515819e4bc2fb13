"""Sources of images: the protocol of those in files, and the source of arrays in memory."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from can_jax.data.decoding.decode import encode_array

Examples = Int[np.ndarray, " chosen"]  # their numbers


@runtime_checkable
class EncodedSource(Protocol):
    """Encoded images (JPEG, PNG, WebP, GIF, …), read in any order."""

    @property
    def examples(self) -> int:
        """How many there are."""
        ...

    @property
    def labels(self) -> Int[np.ndarray, " examples"] | None:
        """-1 where unknown; None where each record holds its own."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, if known."""
        ...

    def read(self, examples: Examples) -> tuple[list[bytes], np.ndarray]:
        """Encoded images, and labels as int32; a damaged record is empty."""
        ...

    def describe(self, example: int) -> str:
        """Where an example lies, for messages."""
        ...


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Decoded images of one size, in memory.

    Attributes:
        images: uint8 (examples, height, width, channels).
        labels: int32 (examples,), -1 where unknown.
        label_names: of the classes, if known.
        files: that the images were read from, if any.
    """

    images: UInt8[np.ndarray, "examples height width channels"]
    labels: Int[np.ndarray, " examples"]
    label_names: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self.images)

    def read(self, examples: Examples) -> tuple[list[bytes], np.ndarray]:
        """Return what `EncodedSource` does, for mixtures with files."""
        return [encode_array(self.images[i]) for i in examples], self.labels[examples]

    def describe(self, example: int) -> str:
        """The place of an image in the array."""
        return f"array, image {example}"


Source = ArraySource | EncodedSource
