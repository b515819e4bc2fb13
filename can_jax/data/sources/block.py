"""Encoded images of several examples in one buffer, which TensorFlow reads without a copy and
splits into strings without running Python code."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from can_jax.utils.tensorflow import tensorflow

ALIGNMENT = 64  # bytes; TensorFlow copies a NumPy array with a smaller alignment


class Block(NamedTuple):
    """The encoded images of some examples, and their labels.

    One buffer for all images takes less time in the interpreter than one object per image. Reading
    into the buffer and copying out of it release the GIL, so that other threads can run Python
    meanwhile.

    Attributes:
        data: The buffer that holds the images, uint8 (bytes,).
        start: The offset in ``data`` of each image, int64 (images,).
        length: The length of each image in bytes, int64 (images,); 0 for a damaged record.
        labels: The label of each image, int32 (images,); -1 if unknown.
    """

    data: np.ndarray
    start: np.ndarray
    length: np.ndarray
    labels: np.ndarray


def empty_buffer(size: int) -> UInt8[np.ndarray, " bytes"]:
    """Return an uninitialized buffer of ``size`` bytes, aligned to `ALIGNMENT` bytes."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + size]


def pack(images: Sequence[bytes], labels: Int[np.ndarray, " chosen"]) -> Block:
    """Return a block with copies of the given encoded images."""
    length = np.array([len(image) for image in images], np.int64)
    end = np.cumsum(length)
    data = empty_buffer(int(length.sum()))
    if images:
        np.concatenate([np.frombuffer(image, np.uint8) for image in images], out=data)
    return Block(data, end - length, length, labels.astype(np.int32))


def merge(blocks: Sequence[Block], rows: Sequence[np.ndarray]) -> Block:
    """Return a single block with the images of several blocks.

    Args:
        blocks: The blocks to merge, at least one.
        rows: For each block, the indices that its images have in the result. The arrays in ``rows``
            together contain every index exactly once.
    """
    order = np.argsort(np.concatenate(rows))
    ends = np.cumsum([len(block.data) for block in blocks])
    data = empty_buffer(int(ends[-1]))
    np.concatenate([block.data for block in blocks], out=data)
    starts = [block.start + end - len(block.data) for block, end in zip(blocks, ends, strict=True)]
    return Block(
        data,
        np.concatenate(starts)[order],
        np.concatenate([block.length for block in blocks])[order],
        np.concatenate([block.labels for block in blocks])[order],
    )


def read_tensors(read_block: Callable[[np.ndarray], Block], examples: Any) -> Block:
    """Return a block of tensors with the encoded images and the labels of the given examples.

    TensorFlow takes over the buffer of the block without a copy.
    """
    tf = tensorflow()
    types = (tf.uint8, tf.int64, tf.int64, tf.int32)
    arrays = tf.numpy_function(read_block, [examples], types, stateful=False)
    return Block(*(tf.ensure_shape(array, (None,)) for array in arrays))


def image_in(data: Any, start: Any, length: Any) -> Any:
    """Return an encoded image of a block as a scalar string tensor, without running Python code.

    Args:
        data: The buffer of the block, a uint8 tensor (bytes,).
        start, length: The byte range of the image, int64 scalars.
    """
    tf = tensorflow()
    # TensorFlow has no operation that converts a uint8 tensor to a string. A serialized tensor ends
    # with its bytes: `tensor_content` is the last field that is set in its protocol buffer.
    serialized = tf.io.serialize_tensor(data[start : start + length])
    return tf.strings.substr(serialized, -length, length)
