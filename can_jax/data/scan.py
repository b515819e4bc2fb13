"""What a look at a shard's headers finds: byte offsets and lengths of its examples."""

import collections
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


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
