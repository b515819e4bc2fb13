"""Which example stands where in the stream: a pure function of (seed, position).

The stream of a run is endless. Each pass over a data set is a permutation of all its examples that
is computed, never stored. Resuming, or splitting the stream over any number of hosts, needs no
state but the position.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int, Int64

from can_jax.data.pipeline.permutation import fold, permute, permute_by_tensorflow
from can_jax.utils.errors import UserError

VERSION = 2  # of the order of new runs; runs that began with version 1 keep its weak permutations
CYCLE = 10_000  # places of the stream over which a mixture has its weights exactly


@dataclasses.dataclass(frozen=True)
class Order:
    """The stream of one data set, or of several that are mixed.

    Alone, position ``p`` lies in epoch ``p // examples``. In a mixture each part has a stream of
    its own, and the parts take turns in a fixed cycle: so each of them shows every example once
    before it shows any of them again.

    Attributes:
        seed: of all permutations, any integer.
        sizes: examples of each part.
        weights: of each part, above 0; their ratios are met to 1 / `CYCLE`.
        version: of the order, `VERSION` for a new run.

    Raises:
        UserError: The version is newer than this one of the package.
    """

    seed: int
    sizes: tuple[int, ...]
    weights: tuple[float, ...] = (1.0,)
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version not in range(1, VERSION + 1):
            raise UserError(
                f"the checkpoint has its examples in an order of version {self.version}, and this "
                f"version of can_jax knows those up to {VERSION}: use the version that wrote it"
            )

    def examples_at(
        self, positions: Int64[np.ndarray, " n"], attempt: int = 0
    ) -> Int64[np.ndarray, " n"]:
        """Return the examples at positions of the stream.

        Args:
            positions: in the stream, from 0 on.
            attempt: 0 for the stream itself; from 1 on, other draws that replace an example which
                cannot be decoded.

        Returns:
            Examples; those of a part are numbered after those of the parts before it.
        """
        part, place = self._turn(positions)
        sizes = np.array(self.sizes, np.int64)
        size = sizes[part]
        epoch, index = np.divmod(place, size)
        if self.version == 1:
            seed = np.full_like(epoch, self.seed % 2**31)
            seeds = np.stack([seed, epoch % 2**31, part * 2**20 + attempt], axis=-1)
            within = permute_by_tensorflow(index, size, seeds)
        else:
            key = np.full(len(positions), self.seed % 2**64, np.uint64)
            for number in (part, attempt, epoch):
                key = fold(key, number)
            within = permute(index, size, key)
        return within + (np.cumsum(sizes) - sizes)[part]

    def _turn(
        self, positions: Int64[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Return the part of each position, and the position in that part's own stream."""
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
    """The cycle in which the parts of a mixture take turns, each spread evenly over it.

    Returns:
        the part at each place of the cycle, how often it came before, and how often in all.
    """
    exact = np.array(weights) / sum(weights) * CYCLE
    counts = np.maximum(1, np.floor(exact)).astype(int)
    # What rounding left over goes to the largest remainders.
    for part in np.argsort(np.floor(exact) - exact, kind="stable")[: max(0, CYCLE - counts.sum())]:
        counts[part] += 1
    ranks = np.concatenate([np.arange(count) for count in counts])
    parts = np.repeat(np.arange(len(counts)), counts)
    when = np.argsort((ranks + 0.5) / counts[parts], kind="stable")
    return parts[when], ranks[when], counts


def shares(weights: tuple[float, ...]) -> list[tuple[float, float]]:
    """Return the share of the stream that the weight of each part asks for, and the one it gets."""
    counts = turns(weights)[2]
    asked = np.array(weights) / sum(weights)
    return list(zip(asked.tolist(), (counts / counts.sum()).tolist(), strict=True))
