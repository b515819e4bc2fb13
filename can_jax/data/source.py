"""What a source of images is, and how a configuration names one."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Decoded images of one size, in memory.

    Attributes:
        images: uint8 (examples, height, width, channels).
        labels: int32 (examples,), -1 where unknown.
        label_names: of the classes, if known.
    """

    images: UInt8[np.ndarray, "examples height width channels"]
    labels: Int[np.ndarray, " examples"]
    label_names: tuple[str, ...] = ()

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self.images)


@runtime_checkable
class EncodedSource(Protocol):
    """Encoded images (JPEG, PNG, GIF, BMP, WebP), read one by one in any order."""

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

    def load(self, index: Any) -> tuple[Any, Any]:
        """Bytes and label of an example: scalar tensors, string and int32. Traced by tf.data."""
        ...

    def describe(self, index: int) -> str:
        """Where an example lies, for messages."""
        ...


Source = ArraySource | EncodedSource


def open_source(data: ConfigDict, split: str) -> Source:
    """The source that a checked config block ``data`` names.

    Raises:
        UserError: there is no such data, or none in it. The message names the place looked at.
    """
    return OPENERS[data.source](data, split)


def _shapes(data: ConfigDict, split: str) -> Source:
    from can_jax.data.shapes import open_shapes

    return open_shapes(data.shapes_count, data.image_size, data.channels, split)


def _arrays(data: ConfigDict, split: str) -> Source:
    from can_jax.data.arrays import open_arrays

    return open_arrays(data.path, split, data.channels)


def _folder(data: ConfigDict, split: str) -> Source:
    from can_jax.data.folder import open_folder

    return open_folder(data.path, split)


def _tfds(data: ConfigDict, split: str) -> Source:
    from can_jax.data.tfds import open_tfds

    return open_tfds(data.name, data.path, split)


# A source is imported when it is used: TFDS alone takes seconds.
OPENERS: dict[str, Callable[[ConfigDict, str], Source]] = {
    "shapes": _shapes,
    "arrays": _arrays,
    "folder": _folder,
    "tfds": _tfds,
}
