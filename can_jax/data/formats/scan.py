"""What a look at a shard's headers finds: byte offsets and lengths of its examples."""

import collections
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

NAMED_GAPS = 3  # damaged places that a message names


class Found(NamedTuple):
    """The examples of one shard.

    ``label`` is -1 where the headers do not tell. ``problem`` says what is damaged, and at which
    byte. ``unused`` counts the members that are no examples, by their kind.
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
) -> Found:
    """Return the examples of a shard as arrays."""
    return Found(
        np.array(offsets, np.int64),
        np.array(lengths, np.int64),
        np.array(labels, np.int32),
        problem,
        collections.Counter() if unused is None else unused,
    )


def name_gaps(gaps: list[tuple[int, int]], describe: Callable[[int, int], str]) -> str:
    """Return a list of the first gaps of a file, and the number of the others.

    Args:
        gaps: The first byte of each, and the one behind it.
        describe: Returns a phrase for one of them.
    """
    more = len(gaps) - NAMED_GAPS
    places = [describe(*gap) for gap in gaps[:NAMED_GAPS]]
    return ", ".join([*places, f"{more} more places"] if more > 0 else places)
