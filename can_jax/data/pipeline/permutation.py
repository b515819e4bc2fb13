"""Pseudorandom permutations of any size that are computed an element at a time.

A permutation of n elements is a keyed Feistel network over a grid of about √n × √n cells. Results
beyond n are permuted again until they lie within it ("cycle walking", Black and Rogaway, Ciphers
with Arbitrary Finite Domains, 2002), which a grid this tight makes rare.
"""

from typing import Any

import numpy as np
from jaxtyping import Int64, UInt64

from can_jax.utils.tensorflow import tensorflow

# Four suffice over a large domain (Luby and Rackoff, 1988). Small ones need more: the orders of 4,
# 5 and 6 elements come out equally often with 16 (60,000 keys, chi-squared), and not with 12.
ROUNDS = 16
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio, the increment of SplitMix64
MASK = 2**64 - 1


def mix(values: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """Scatter 64-bit integers one to one: the output function of SplitMix64.

    Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014.
    """
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def fold(key: UInt64[np.ndarray, " n"], number: Any) -> UInt64[np.ndarray, " n"]:
    """Derive a key that is unrelated to those of other numbers and other keys."""
    return mix(mix(key + np.uint64(GOLDEN)) ^ np.asarray(number).astype(np.uint64))


def permute(
    index: Int64[np.ndarray, " n"], size: Int64[np.ndarray, " n"], key: UInt64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Return where the permutation of each row's key sends each index.

    Args:
        index: elements, from 0 to ``size`` - 1.
        size: how many elements are permuted, from 1 to 2^62, for each row.
        key: of the permutation, for each row; equal keys give equal permutations.
    """
    height = np.ceil(np.sqrt(size)).astype(np.uint64)
    width = -(-size // height.astype(np.int64)).astype(np.uint64)
    result = index.astype(np.uint64)
    outside: Any = slice(None)
    while True:
        cells = _encrypt(result[outside], height[outside], width[outside], key[outside])
        result[outside] = cells
        outside = np.flatnonzero(result >= size.astype(np.uint64))
        if not len(outside):
            return result.astype(np.int64)


def _encrypt(cells: Any, height: Any, width: Any, key: Any) -> Any:
    """Permute the cells of a grid: its rows shift by amounts that hash the columns, and so on."""
    row, column = cells // width, cells % width
    for number in range(ROUNDS):
        salt = np.uint64(GOLDEN * (number + 1) & MASK)
        if number % 2:
            column = (column + (mix(row + salt ^ key) >> np.uint64(32))) % width
        else:
            row = (row + (mix(column + salt ^ key) >> np.uint64(32))) % height
    return row * width + column


def permute_by_tensorflow(index: Any, size: Any, seeds: Any) -> Any:
    """Permute as orders of version 1 do, for the runs that began with it.

    With four rounds TensorFlow's cipher leaves epochs related: 28 times as many pairs of images as
    chance has share a batch in two successive epochs of 50,000 images in batches of 256.
    """
    # The raw operation: its Python wrapper pads a matrix of seeds along the wrong axis.
    shuffle = tensorflow().raw_ops.RandomIndexShuffle
    return shuffle(index=index, seed=seeds.astype(np.int32), max_index=size - 1).numpy()
