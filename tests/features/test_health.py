import numpy as np
import pytest

from can_jax.features import health


def test_alignment_of_same_opposite_and_orthogonal_views():
    x = np.array([[1.0, 0], [0, 2.0]])
    assert health.alignment(x, 5 * x) == pytest.approx(0)
    assert health.alignment(x, -x) == pytest.approx(4)
    assert health.alignment(x, x[::-1]) == pytest.approx(2)


def test_uniformity_by_hand_and_of_a_point():
    assert health.uniformity(np.ones((5, 3))) == pytest.approx(0)
    x = np.eye(3)  # every pair has squared distance 2
    assert health.uniformity(x) == pytest.approx(-4)
    two = np.array([[1.0, 0], [1, 0], [-1, 0]])  # distances 0, 4, 4
    assert health.uniformity(two) == pytest.approx(np.log((1 + 2 * np.exp(-8)) / 3))


def test_tolerance_looks_at_pairs_of_a_class():
    x = np.array([[1.0, 0], [0, 1], [1, 1], [-1, 0]])
    found = health.tolerance(x, np.array([0, 0, 1, 1]))
    assert found == pytest.approx((0 - np.sqrt(0.5)) / 2)


def test_many_examples_are_sampled_without_pairing_any_with_itself():
    x = np.random.default_rng(0).normal(size=(1600, 32))
    assert health.PAIRS < 1600 * 1599 // 2
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    spread = np.exp(-4 * (1 - unit @ unit.T))
    whole, own = np.log(spread.mean()), np.log(spread[~np.eye(1600, dtype=bool)].mean())
    assert whole - own > 0.02
    assert health.uniformity(x) == pytest.approx(own, abs=0.005)


def test_dead_dimensions():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 6))
    x[:, 2] = 1.0
    x[:, 4] *= 1e-6
    assert health.dead_dimensions(x) == 2


def test_tolerance_is_of_all_pairs_of_a_class_or_of_none():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(30, 4)), rng.integers(0, 5, 30) * 50_000
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(30) for j in range(i) if labels[i] == labels[j]]
    wanted = np.mean([unit[i] @ unit[j] for i, j in pairs])
    assert health.tolerance(x, labels) == pytest.approx(wanted)
    assert health.tolerance(x, np.arange(30)) is None
