"""Encoded images of several examples in one buffer, which TensorFlow reads without a copy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

ALIGNMENT = 64  # bytes; TensorFlow copies an array of NumPy that is aligned to less


class Block(NamedTuple):
    """The encoded images of some examples, and their labels.

    A buffer costs the interpreter less than an object per image. Reading into it and copying out of
    it also release the GIL, so that other threads can run Python meanwhile.

    Attributes:
        data: The buffer that holds the images, uint8 (bytes,).
        start: The offset in ``data`` of each image, int64 (images,).
        length: The bytes of each image, int64 (images,); 0 for a damaged record.
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
        rows: For each block, the index in the result of each of its images. Together, the arrays
            hold each index once.
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
