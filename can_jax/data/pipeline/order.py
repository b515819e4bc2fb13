"""The order of examples in the training stream, a pure function of (seed, position).

The training stream is endless. Each pass over a data set is a pseudorandom permutation of its
examples, which is computed on demand and not stored. Resuming, or splitting the stream over any
number of hosts, therefore needs no state except the position.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int, Int64

from can_jax.data.pipeline.permutation import fold, permute, permute_by_tensorflow
from can_jax.utils.errors import UserError

VERSION = 2  # the order of new runs; runs that began with version 1 keep its weak permutations
CYCLE = 10_000  # the approximate length of a mixture's cycle, in positions


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of examples in the stream of one data set, or of a mixture of several.

    In a single data set, position ``p`` belongs to epoch ``p // examples``. In a mixture, each part
    has its own stream, and the streams are interleaved in a fixed cycle. Each part thus yields all
    of its examples once before it repeats any.

    Attributes:
        seed: The seed of all permutations; any integer.
        sizes: The number of examples in each part.
        weights: The relative sampling weight of each part, above 0. The cycle of a mixture has
            about `CYCLE` positions. A part's number of positions in the cycle is `CYCLE` times its
            normalized weight, rounded up or down. If the product is below 1, the part gets 1 or 2.
        version: The version of the ordering algorithm, by default `VERSION`, the newest.

    Raises:
        UserError: This release does not support ``version``, for example because a newer release
            introduced it.
    """

    seed: int
    sizes: tuple[int, ...]
    weights: tuple[float, ...] = (1.0,)
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version not in range(1, VERSION + 1):
            raise UserError(
                f"the checkpoint uses version {self.version} of the example order, but this "
                f"release of can_jax supports 1 to {VERSION}: use the release that wrote the "
                "checkpoint"
            )

    def examples_at(
        self, positions: Int64[np.ndarray, " n"], attempt: int = 0
    ) -> Int64[np.ndarray, " n"]:
        """Return the indices of the examples at the given positions in the stream.

        Args:
            positions: The positions in the stream, at least 0.
            attempt: 0 for the examples of the stream; 1 or more for the substitutes of undecodable
                examples.

        Returns:
            The indices of the examples. In a mixture, the indices of a part begin after those of
            the part before it.
        """
        part, local = self._turn(positions)
        sizes = np.array(self.sizes, np.int64)
        size = sizes[part]
        epoch, index = np.divmod(local, size)
        if self.version == 1:
            seed = np.full_like(epoch, self.seed % 2**31)
            seeds = np.stack([seed, epoch % 2**31, part * 2**20 + attempt], axis=-1)
            within = permute_by_tensorflow(index, size, seeds)
        else:
            key = np.full(len(positions), self.seed % 2**64, np.uint64)
            for value in (part, attempt, epoch):
                key = fold(key, value)
            within = permute(index, size, key)
        return within + (np.cumsum(sizes) - sizes)[part]

    def _turn(
        self, positions: Int64[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Return the part at each position of the stream, and the position within that part's own
        stream."""
        if len(self.sizes) == 1:
            return np.zeros_like(positions), positions
        parts, ranks, counts = turns(self.weights)
        cycle, slot = np.divmod(positions, len(parts))
        part = parts[slot]
        return part, cycle * counts[part] + ranks[slot]


@functools.cache
def turns(
    weights: tuple[float, ...],
) -> tuple[Int[np.ndarray, " cycle"], Int[np.ndarray, " cycle"], Int[np.ndarray, " parts"]]:
    """Return the cycle in which the parts of a mixture alternate; each part is spread evenly over
    the cycle.

    Returns:
        The part at each slot of the cycle, the number of earlier slots with the same part, and the
        total number of slots of each part.
    """
    exact = np.array(weights) / sum(weights) * CYCLE
    counts = np.maximum(1, np.floor(exact)).astype(int)
    # The slots left over by rounding down go to the parts with the largest remainders.
    for part in np.argsort(np.floor(exact) - exact, kind="stable")[: max(0, CYCLE - counts.sum())]:
        counts[part] += 1
    ranks = np.concatenate([np.arange(count) for count in counts])
    parts = np.repeat(np.arange(len(counts)), counts)
    slots = np.argsort((ranks + 0.5) / counts[parts], kind="stable")
    return parts[slots], ranks[slots], counts


def shares(weights: tuple[float, ...]) -> list[tuple[float, float]]:
    """Return the requested and the actual fraction of the stream for each part of a mixture."""
    counts = turns(weights)[2]
    requested = np.array(weights) / sum(weights)
    return list(zip(requested.tolist(), (counts / counts.sum()).tolist(), strict=True))
