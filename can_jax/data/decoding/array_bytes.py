"""The encoding of arrays that share a stream with image files: lossless, of any channels."""

import numpy as np
from jaxtyping import UInt8

ARRAY = b"\x93A"  # the first bytes of an encoded array; height, width and channels follow
ARRAY_HEADER = len(ARRAY) + 3 * 4


def encode_array(image: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """Encode an array of pixels as bytes that `can_jax.data.decoding.decode.native_pixels` decodes
    unchanged."""
    return ARRAY + np.array(image.shape, "<i4").tobytes() + image.tobytes()
