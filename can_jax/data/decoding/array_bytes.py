"""A lossless byte encoding of image arrays with any number of channels.

A mixture of in-memory arrays and image files encodes the arrays, so that all images of the mixture
are byte strings.
"""

import numpy as np
from jaxtyping import UInt8

ARRAY = b"\x93A"  # the first bytes of an encoded array; int32 height, width and channels follow
ARRAY_HEADER = len(ARRAY) + 3 * 4


def encode_array(image: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """Encode an image array as bytes, to be decoded by `decode_array` or, in TensorFlow, by
    `can_jax.data.decoding.decode.native_pixels`."""
    return ARRAY + np.array(image.shape, "<i4").tobytes() + image.tobytes()


def decode_array(encoded: bytes) -> UInt8[np.ndarray, "height width channels"]:
    """Return the image array that `encode_array` encoded."""
    shape = np.frombuffer(encoded, "<i4", 3, offset=len(ARRAY))
    return np.frombuffer(encoded, np.uint8, offset=ARRAY_HEADER).reshape(shape)
