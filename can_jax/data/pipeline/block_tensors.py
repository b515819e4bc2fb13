"""Blocks of encoded images as tensors, which tf.data cuts into strings without Python."""

from collections.abc import Callable
from typing import Any

import numpy as np

from can_jax.data.sources.block import Block
from can_jax.utils.tensorflow import tensorflow


def read_tensors(read_block: Callable[[np.ndarray], Block], examples: Any) -> Block:
    """Return a block of tensors with the encoded images and the labels of the given examples.

    TensorFlow takes over the arrays of the block without a copy.
    """
    tf = tensorflow()
    types = (tf.uint8, tf.int64, tf.int64, tf.int32)
    arrays = tf.numpy_function(read_block, [examples], types, stateful=False)
    return Block(*(tf.ensure_shape(array, (None,)) for array in arrays))


def image_in(data: Any, start: Any, length: Any) -> Any:
    """Return an encoded image of a block as a scalar string tensor, without Python.

    Args:
        data: The buffer of the block, a uint8 tensor (bytes,).
        start, length: The byte range of the image, int64 scalars.
    """
    tf = tensorflow()
    # TensorFlow has no operation from bytes to a string. A serialized tensor ends with its bytes:
    # `tensor_content` is the last field that is set in its protocol buffer.
    serialized = tf.io.serialize_tensor(data[start : start + length])
    return tf.strings.substr(serialized, -length, length)
