"""The result of scanning a shard's headers: byte offsets, lengths and labels of its examples."""

import collections
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

NAMED_GAPS = 3  # damaged byte ranges that a message names


class ScanResult(NamedTuple):
    """The examples of one shard.

    Attributes:
        offset: The offset of each example in the file, in bytes.
        length: The length of each example in bytes.
        label: The label of each example; -1 if the headers do not hold it.
        problem: A phrase that describes the damage and the byte at which it starts, or None.
        unused: The number of members that are not examples, by kind.
    """

    offset: Int[np.ndarray, " examples"]
    length: Int[np.ndarray, " examples"]
    label: Int[np.ndarray, " examples"]
    problem: str | None
    unused: collections.Counter[str]


def found(
    offsets: list[int],
    lengths: list[int],
    labels: list[int],
    problem: str | None = None,
    unused: collections.Counter[str] | None = None,
) -> ScanResult:
    """Return the examples of a shard as arrays; see `ScanResult`."""
    return ScanResult(
        np.array(offsets, np.int64),
        np.array(lengths, np.int64),
        np.array(labels, np.int32),
        problem,
        collections.Counter() if unused is None else unused,
    )


def name_gaps(gaps: list[tuple[int, int]], describe: Callable[[int, int], str]) -> str:
    """Describe the first damaged ranges of a file, and count the others.

    Args:
        gaps: The byte ranges, (start, end) with an exclusive end.
        describe: A function that returns a phrase for one range.
    """
    more = len(gaps) - NAMED_GAPS
    phrases = [describe(*gap) for gap in gaps[:NAMED_GAPS]]
    return ", ".join([*phrases, f"{more} more places"] if more > 0 else phrases)
