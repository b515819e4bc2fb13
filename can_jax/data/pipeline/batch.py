"""What the host sends to the devices each step."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, UInt8, UInt32
from ml_collections import ConfigDict


class Batch(NamedTuple):
    """Crops of each image, as bytes.

    ``position`` is the example's place in the stream of the whole run, modulo 2**32; all its
    randomness on the device follows from it. ``label`` is -1 where unknown.
    """

    views: UInt8[Array, "images views height width channels"]
    position: UInt32[Array, " images"]
    label: Int[Array, " images"]


def batch_shapes(config: ConfigDict, sharding: Any) -> Batch:
    """What stands for a resolved configuration's batch where only shapes are needed."""
    images, data = config.batch_size, config.data

    def shape(*dimensions: int, dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(dimensions, dtype, sharding=sharding)

    return Batch(
        views=shape(images, config.augment.views, *data.image_size, data.channels, dtype=np.uint8),
        position=shape(images, dtype=np.uint32),
        label=shape(images, dtype=np.int32),
    )
