"""The order of examples in the training stream, a pure function of (seed, position).

The stream of a run is endless. Each pass over a data set is a permutation of its examples that is
computed, never stored. Resuming, or splitting the stream over any number of hosts, therefore needs
no state except the position.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int, Int64

from can_jax.data.pipeline.permutation import fold, permute, permute_by_tensorflow
from can_jax.utils.errors import UserError

VERSION = 2  # the order of new runs; runs that began with version 1 keep its weak permutations
CYCLE = 10_000  # about as many positions after which the turns of a mixture's parts repeat


@dataclasses.dataclass(frozen=True)
class Order:
    """The stream of one data set, or of a mixture of several.

    In a single data set, position ``p`` belongs to epoch ``p // examples``. In a mixture, each part
    has its own stream, and the parts take turns in a fixed cycle. Each part thus shows every
    example once before it repeats one.

    Attributes:
        seed: The seed of all permutations, any integer.
        sizes: The number of examples in each part.
        weights: The weight of each part, above 0. The shares of the parts in the stream follow the
            weights to about 1 / `CYCLE`, which is also the least share of a part.
        version: The version of the order, by default `VERSION`.

    Raises:
        UserError: The version is newer than this version of the package.
    """

    seed: int
    sizes: tuple[int, ...]
    weights: tuple[float, ...] = (1.0,)
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version not in range(1, VERSION + 1):
            raise UserError(
                f"the checkpoint uses version {self.version} of the example order, and this "
                f"version of can_jax supports up to {VERSION}: use the version that wrote it"
            )

    def examples_at(
        self, positions: Int64[np.ndarray, " n"], attempt: int = 0
    ) -> Int64[np.ndarray, " n"]:
        """Return the indices of the examples at positions of the stream.

        Args:
            positions: The positions in the stream, from 0 on.
            attempt: 0 for the stream itself; higher values select substitutes for an undecodable
                example.

        Returns:
            The indices of the examples. The examples of a part are numbered after those of earlier
            parts.
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
        """Return the part of each position, and the position within that part's own stream."""
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
    """Return the cycle in which the parts of a mixture take turns, each spread evenly over it.

    Returns:
        The part at each slot of the cycle, how often that part occurs before the slot, and how
        often each part occurs in all.
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
    """Return, for each part, the fraction of the stream that its weight requests and its actual
    one."""
    counts = turns(weights)[2]
    requested = np.array(weights) / sum(weights)
    return list(zip(requested.tolist(), (counts / counts.sum()).tolist(), strict=True))
