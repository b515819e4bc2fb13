import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from can_jax.data.order import CYCLE, Order, turns
from can_jax.tf import tensorflow

tf = tensorflow()


def order(positions, sizes, seed=0, attempt=0, weights=(1.0,)):
    sizes = sizes if isinstance(sizes, tuple) else (sizes,)
    places = tf.constant(positions, tf.int64)
    return Order(seed, sizes, weights).examples_at(places, attempt).numpy()


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
    assert order([23], 7)[0] == whole[23]


def test_order_is_the_same_for_ever():
    # A change here changes every run that is resumed.
    assert order(range(14), 7, seed=3).tolist() == [2, 5, 1, 3, 6, 4, 0, 6, 0, 2, 4, 1, 3, 5]
    mixed = order(range(10), (7, 100), seed=3, weights=(3.0, 1.0))
    assert mixed.tolist() == [2, 5, 92, 1, 3, 6, 49, 4, 0, 6]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6))
def test_turns_meet_the_weights_and_are_spread_evenly(weights):
    parts, ranks, counts = turns(tuple(weights))
    exact = np.array(weights) / sum(weights)
    assert abs(counts / len(parts) - exact).max() <= 2 * len(weights) / CYCLE
    for part, count in enumerate(counts):
        where = np.flatnonzero(parts == part)
        assert count >= 1 and ranks[where].tolist() == list(range(count))
        share = np.arange(1, len(where) + 1) / len(where) * len(parts)
        assert abs(share - where).max() <= len(weights) * len(parts) / len(where) + 1


@pytest.mark.parametrize("weights", [(1.0, 1.0), (5.0, 1.0), (1.0, 3.0)])
def test_each_part_of_a_mixture_has_epochs_of_its_own(weights):
    sizes = (5, 11)
    mixed = order(range(400), sizes, weights=weights)
    for part, (start, size) in enumerate([(0, 5), (5, 11)]):
        drawn = [x - start for x in mixed if start <= x < start + size]
        assert len(drawn) == pytest.approx(400 * weights[part] / sum(weights), abs=2)
        for epoch in range(len(drawn) // size):
            assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))
    np.testing.assert_array_equal(mixed[100:], order(range(100, 400), sizes, weights=weights))
