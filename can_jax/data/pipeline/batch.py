"""The batch that the host transfers to the devices at each step."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, UInt8, UInt32
from ml_collections import ConfigDict


class Batch(NamedTuple):
    """A batch of uint8 crops, with the stream position and label of each image.

    Attributes:
        views: The crops of each image, uint8 (images, views, height, width, channels).
        position: The position of each example in the training stream, modulo 2**32. On the
            device, the position is folded into the random keys of the example.
        label: The label of each image; -1 where unknown.
        content: An identifier that copies of an image share; None unless `needs_content` returns
            True.
    """

    views: UInt8[Array, "images views height width channels"]
    position: UInt32[Array, " images"]
    label: Int[Array, " images"]
    content: UInt32[Array, " images"] | None = None


def needs_content(config: ConfigDict) -> bool:
    """Return whether a batch must contain the identifiers by which the contrastive objective
    recognizes copies of an image."""
    return bool(config.objective.contrastive.exclude_copies)


def batch_shapes(config: ConfigDict, sharding: Any) -> Batch:
    """Return the shapes and dtypes of a batch, as a `Batch` of `jax.ShapeDtypeStruct`.

    Args:
        config: The resolved configuration, which determines the batch size, the views and the image
            size.
        sharding: The `jax.sharding.Sharding` of every array of the batch.
    """
    images, data = config.batch_size, config.data

    def shape(*dimensions: int, dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(dimensions, dtype, sharding=sharding)

    return Batch(
        views=shape(images, config.augment.views, *data.image_size, data.channels, dtype=np.uint8),
        position=shape(images, dtype=np.uint32),
        label=shape(images, dtype=np.int32),
        content=shape(images, dtype=np.uint32) if needs_content(config) else None,
    )
