"""Which example stands where in the stream: a pure function of (seed, position).

The stream of a run is endless. Each pass over a data set is a permutation of all its examples that
is computed, never stored. Resuming, or splitting the stream over any number of hosts, needs no
state but the position.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Int

from can_jax.tf import tensorflow

CYCLE = 10_000  # places of the stream over which a mixture has its weights exactly


@dataclasses.dataclass(frozen=True)
class Order:
    """The stream of one data set, or of several that are mixed.

    Alone, position ``p`` lies in epoch ``p // examples``. In a mixture each part has a stream of
    its own, and the parts take turns in a fixed cycle: so each of them shows every example once
    before it shows any of them again.

    Attributes:
        seed: of all permutations.
        sizes: examples of each part.
        weights: of each part, above 0; their ratios are met to 1 / `CYCLE`.
    """

    seed: int
    sizes: tuple[int, ...]
    weights: tuple[float, ...] = (1.0,)

    def examples_at(self, positions: Any, attempt: Any = 0) -> Any:
        """The examples at places of the stream.

        Args:
            positions: int64 tensor (n,).
            attempt: 0 for the stream itself; from 1 on, other draws that replace an example which
                cannot be decoded.

        Returns:
            int64 tensor (n,). The examples of a part count on from those of the parts before it.
        """
        tf = tensorflow()
        part, place = self._turn(positions)
        sizes = tf.constant(self.sizes, tf.int64)
        size = tf.gather(sizes, part)
        epochs = tf.cast(place // size % 2**31, tf.int32)
        # Parts, attempts and epochs have permutations of their own.
        draw = tf.cast(part, tf.int32) * 2**20 + attempt
        seeds = tf.stack([tf.zeros_like(epochs) + self.seed % 2**31, epochs, draw], axis=-1)
        # The raw operation: its Python wrapper pads a matrix of seeds along the wrong axis.
        within = tf.raw_ops.RandomIndexShuffle(index=place % size, seed=seeds, max_index=size - 1)
        return within + tf.gather(tf.cumsum(sizes, exclusive=True), part)

    def _turn(self, positions: Any) -> tuple[Any, Any]:
        """Part, and place in the part's own stream, of each position."""
        tf = tensorflow()
        if len(self.sizes) == 1:
            return tf.zeros_like(positions), positions
        parts, ranks, counts = (tf.constant(x, tf.int64) for x in turns(self.weights))
        cycle, slot = positions // parts.shape[0], positions % parts.shape[0]
        part = tf.gather(parts, slot)
        return part, cycle * tf.gather(counts, part) + tf.gather(ranks, slot)


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
