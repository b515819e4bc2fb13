"""The result of scanning the headers of a shard: the byte range and label of each example."""

import collections
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

NAMED_GAPS = 3  # the maximum number of damaged byte ranges that a message lists


class ScanResult(NamedTuple):
    """The examples found in one shard.

    Attributes:
        offset: The byte offset of each example in the file.
        length: The length of each example in bytes.
        label: The label of each example; -1 if the label is unknown or stored in a TFRecord.
        problem: A phrase for the damage or the compression that prevents reading the whole shard;
            None if the whole shard is readable.
        unused: The number of unused tar members of each kind.
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
    """Return a `ScanResult` whose columns are converted from lists to arrays."""
    return ScanResult(
        np.array(offsets, np.int64),
        np.array(lengths, np.int64),
        np.array(labels, np.int32),
        problem,
        collections.Counter() if unused is None else unused,
    )


def name_gaps(gaps: list[tuple[int, int]], describe: Callable[[int, int], str]) -> str:
    """Return a phrase that names the first `NAMED_GAPS` damaged ranges of a file and counts the
    others.

    Args:
        gaps: The damaged byte ranges, as pairs of start and exclusive end.
        describe: A function that takes the start and end of a range, and returns a phrase for it.
    """
    more = len(gaps) - NAMED_GAPS
    phrases = [describe(*gap) for gap in gaps[:NAMED_GAPS]]
    return ", ".join([*phrases, f"{more} more ranges"] if more > 0 else phrases)
