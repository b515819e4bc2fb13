import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from can_jax.data.order import example_at
from can_jax.tf import tensorflow

tf = tensorflow()


def order(positions, examples, seed=0, attempt=0):
    return example_at(tf.constant(positions, tf.int64), examples, seed, attempt).numpy()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(0, 2**33), st.integers(0, 2**31 - 1))
def test_every_epoch_visits_every_example_once(examples, epoch, seed):
    positions = np.arange(epoch * examples, (epoch + 1) * examples)
    assert sorted(order(positions, examples, seed)) == list(range(examples))


def test_epochs_seeds_and_attempts_differ():
    first = order(range(100), 100)
    assert not np.array_equal(first, order(range(100, 200), 100))
    assert not np.array_equal(first, order(range(100), 100, seed=1))
    assert not np.array_equal(first, order(range(100), 100, attempt=1))


def test_any_part_of_the_stream_can_be_had_alone():
    whole = order(range(50), 7)
    for start in (0, 3, 20):
        np.testing.assert_array_equal(whole[start : start + 9], order(range(start, start + 9), 7))
    assert order(23, 7) == whole[23]
