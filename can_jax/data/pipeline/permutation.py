"""Pseudorandom permutations of any size, computed one element at a time.

A permutation of n elements is a keyed Feistel network over a grid of about √n × √n cells. A result
of n or more is permuted again until it is below n (cycle walking). The grid has only slightly more
than n cells, so permuting again is rarely necessary.

Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002.
"""

from typing import Any

import numpy as np
from jaxtyping import Int64, UInt64

from can_jax.utils.tensorflow import tensorflow

# Four rounds suffice for a large domain (Luby and Rackoff, 1988). Small domains need more: with 16
# rounds all orders of 4, 5 and 6 elements are equally frequent (60,000 keys, chi-squared); with 12
# they are not.
ROUNDS = 16
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / the golden ratio, the increment of SplitMix64
MASK = 2**64 - 1


def mix(values: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """Hash 64-bit integers bijectively, with the output function of SplitMix64.

    Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014.
    """
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def fold(key: UInt64[np.ndarray, " n"], value: Any) -> UInt64[np.ndarray, " n"]:
    """Hash a key and an integer to a new pseudorandom key."""
    return mix(mix(key + np.uint64(GOLDEN)) ^ np.asarray(value).astype(np.uint64))


def permute(
    index: Int64[np.ndarray, " n"], size: Int64[np.ndarray, " n"], key: UInt64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Permute each index by the pseudorandom permutation that its size and key define.

    Args:
        index: The indices to permute, each from 0 to its ``size`` - 1.
        size: The size of the permutation that applies to each index, from 1 to 2^62.
        key: The key of the permutation that applies to each index. Equal keys and sizes give equal
            permutations.
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
    """Permute the cells of a grid: keyed hashes of the column shift the row, and vice versa."""
    row, column = cells // width, cells % width
    for round_index in range(ROUNDS):
        salt = np.uint64(GOLDEN * (round_index + 1) & MASK)
        if round_index % 2:
            column = (column + (mix(row + salt ^ key) >> np.uint64(32))) % width
        else:
            row = (row + (mix(column + salt ^ key) >> np.uint64(32))) % height
    return row * width + column


def permute_by_tensorflow(index: Any, size: Any, seeds: Any) -> Any:
    """Permute indices with TensorFlow's cipher, as runs that began with order version 1 do.

    The cipher has only four rounds, so the orders of successive epochs are correlated. With 50,000
    images in batches of 256, two images share a batch in two successive epochs 28 times as often as
    by chance.
    """
    # The Python wrapper of this operation pads a matrix of seeds along the wrong axis.
    shuffle = tensorflow().raw_ops.RandomIndexShuffle
    return shuffle(index=index, seed=seeds.astype(np.int32), max_index=size - 1).numpy()
