"""Which example stands where in the stream: a pure function of (seed, position).

The stream of a run is endless. Position ``p`` lies in epoch ``p // examples``, and each epoch is a
permutation of all examples that is computed, never stored. Resuming, or splitting the stream over
any number of hosts, needs no state but the position.
"""

from typing import Any

from can_jax.tf import tensorflow


def example_at(positions: Any, examples: int, seed: int, attempt: Any = 0) -> Any:
    """The example at each position of the stream.

    Args:
        positions: int64 tensor of places in the stream.
        examples: size of the data set.
        seed: of the order.
        attempt: 0 for the stream itself; from 1 on, other draws that replace an example which
            cannot be decoded.

    Returns:
        int64 tensor of example indices, shaped like ``positions``.
    """
    tf = tensorflow()
    epochs = tf.cast(positions // examples % 2**31, tf.int32)
    constant = tf.zeros_like(epochs)
    seeds = tf.stack([constant + seed % 2**31, epochs, constant + attempt], axis=-1)
    # The raw operation: its Python wrapper pads a matrix of seeds along the wrong axis.
    return tf.raw_ops.RandomIndexShuffle(
        index=positions % examples, seed=seeds, max_index=tf.cast(examples - 1, tf.int64)
    )
