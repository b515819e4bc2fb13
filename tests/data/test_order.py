import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from can_jax.data.pipeline.order import CYCLE, VERSION, Order, shares, turns
from can_jax.data.pipeline.permutation import permute


def order(positions, sizes, seed=0, attempt=0, weights=(1.0,), version=VERSION):
    sizes = sizes if isinstance(sizes, tuple) else (sizes,)
    return Order(seed, sizes, weights, version).examples_at(np.asarray(positions), attempt)


def epoch(examples, number=0, **options):
    return order(np.arange(number * examples, (number + 1) * examples), examples, **options)


def recurrence(examples, batch):
    """Pairs of a batch that share one in the next epoch too, as a multiple of what chance gives."""
    whole = examples // batch * batch
    batch_of = np.empty(examples, np.int64)
    batch_of[epoch(examples, 1)] = np.arange(examples) // batch
    rows = np.sort(batch_of[epoch(examples)[:whole]].reshape(-1, batch), axis=1)
    again = 0
    for gap in range(1, batch):
        same = (rows[:, gap:] == rows[:, :-gap]).sum()
        if not same:
            break  # no batch holds so many of another
        again += same
    return again / (rows.size * (batch - 1) / 2 * (batch - 1) / (examples - 1))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(0, 2**33), st.integers(-(2**31), 2**70))
def test_every_epoch_visits_every_example_once(examples, number, seed):
    assert sorted(epoch(examples, number, seed=seed)) == list(range(examples))


def test_sizes_around_powers_of_two_are_permuted_whole():
    # TensorFlow's cipher, which version 1 uses, never shows the last of 2**16 + 1 examples.
    for power in range(1, 17):
        for examples in {2**power - 1, 2**power, 2**power + 1} if power < 14 else {2**power + 1}:
            assert (np.bincount(epoch(examples), minlength=examples) == 1).all(), examples
    assert (np.bincount(epoch(2**16 + 1, version=1), minlength=2**16 + 1) != 1).any()


@pytest.mark.slow
def test_every_size_is_permuted_whole():
    for examples in [*range(1, 5001), *(2**power + d for power in range(18, 25) for d in (-1, 1))]:
        assert (np.bincount(epoch(examples), minlength=examples) == 1).all(), examples


def test_large_sizes_are_permuted_one_to_one():
    for examples in (10**7, 10**9, 2**40 + 1):
        index = np.unique(np.random.default_rng(0).integers(examples, size=200_000))
        found = permute(index, np.full_like(index, examples), np.full(len(index), 7, np.uint64))
        assert len(np.unique(found)) == len(index) and 0 <= found.min() <= found.max() < examples


def test_pairs_of_a_batch_meet_again_as_often_as_by_chance():
    assert recurrence(50_000, 256) == pytest.approx(1, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("examples", [1_281_167, 10_000_000])
def test_pairs_of_large_batches_meet_again_as_often_as_by_chance(examples):
    assert recurrence(examples, 4096) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("examples", [100, 349, 1000, 5000, 65_537])
def test_orders_are_unrelated(examples):
    numbers = np.arange(examples)
    orders = {"the files": numbers, "the last position": numbers[::-1]}
    # Seeds, epochs and attempts at which only high bits differ, or that trade places, too.
    for seed in (0, 1, 2, 256, 2**16, 2**31, 2**32, 2**40):
        orders[f"seed {seed}"] = epoch(examples, seed=seed)
    for number in (1, 2, 256, 2**16, 2**32):
        orders[f"epoch {number}"] = epoch(examples, number)
        orders[f"attempt {number}"] = epoch(examples, attempt=number)
    mixed = order(np.arange(4 * examples), (examples, examples), weights=(1.0, 1.0))
    for part in (0, 1):
        own = mixed[mixed // examples == part][:examples] - part * examples
        orders[f"part {part} of the mixture"] = own
    names, columns = zip(*orders.items(), strict=True)
    correlation = np.corrcoef(np.array(columns)) * np.sqrt(examples)
    same = (np.array(columns)[:, None] == np.array(columns)).sum(-1)
    for i in range(2, len(names)):
        for j in range(i):
            if (names[i], names[j]) == ("part 0 of the mixture", "seed 0"):
                continue  # the first part alone
            assert abs(correlation[i, j]) < 5 and same[i, j] < 12, (names[i], names[j])


@pytest.mark.parametrize("examples", [2, 3, 4, 5])
def test_orders_of_few_examples_come_equally_often(examples):
    epochs = 6000
    found = order(np.arange(epochs * examples), examples).reshape(epochs, examples)
    counts = np.unique(found, axis=0, return_counts=True)[1]
    outcomes = np.prod(np.arange(1, examples + 1))
    expected = epochs / outcomes
    assert len(counts) == outcomes
    # Chi-squared has the mean and half the variance of its degrees of freedom.
    deviation = ((counts - expected) ** 2 / expected).sum() - (outcomes - 1)
    assert abs(deviation) < 5 * np.sqrt(2 * (outcomes - 1))


def test_any_part_of_the_stream_can_be_had_alone():
    whole = order(range(50), 7)
    for start in (0, 3, 20):
        np.testing.assert_array_equal(whole[start : start + 9], order(range(start, start + 9), 7))
    assert order([23], 7)[0] == whole[23]


def test_order_is_the_same_for_ever():
    # A change here changes every run that is resumed.
    assert order(range(14), 7, seed=3).tolist() == [0, 2, 4, 1, 6, 5, 3, 6, 3, 2, 4, 0, 5, 1]
    mixed = order(range(10), (7, 100), seed=3, weights=(3.0, 1.0))
    assert mixed.tolist() == [0, 2, 29, 4, 1, 6, 32, 5, 3, 6]


def test_runs_of_version_1_keep_their_order():
    old = {"version": 1, "seed": 3}
    assert order(range(14), 7, **old).tolist() == [2, 5, 1, 3, 6, 4, 0, 6, 0, 2, 4, 1, 3, 5]
    mixed = order(range(10), (7, 100), weights=(3.0, 1.0), **old)
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


def test_a_share_that_the_cycle_cannot_meet_is_told():
    (most, _), (asked, real) = shares((1.0, 1e-6))
    assert most == pytest.approx(1) and asked == pytest.approx(1e-6) and real == 1 / CYCLE


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
