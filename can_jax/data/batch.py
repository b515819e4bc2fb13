"""What the host sends to the devices each step."""

from typing import NamedTuple

from jaxtyping import Array, Int, UInt8, UInt32


class Batch(NamedTuple):
    """Crops of each image, as bytes.

    ``position`` is the example's place in the stream of the whole run, modulo 2**32; all its
    randomness on the device follows from it. ``label`` is -1 where unknown.
    """

    views: UInt8[Array, "images views height width channels"]
    position: UInt32[Array, " images"]
    label: Int[Array, " images"]
