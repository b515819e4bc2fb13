"""DCI and MIG on codes whose scores are known."""

import itertools

import numpy as np
import pytest

from can_jax.features.disentanglement import (
    dci,
    lasso,
    mean_square_correlation,
    mutual_information_gap,
)


@pytest.fixture(scope="module")
def factors():
    """All combinations of two continuous factors and one of classes: they are independent."""
    levels = np.linspace(0, 1, 10)
    grid = np.array(list(itertools.product(levels, levels, range(4))))
    return {"x": grid[:, 0], "y": grid[:, 1], "class": grid[:, 2].astype(np.int32)}


def scores(codes, factors):
    return dci((codes, factors), (codes, factors))


def test_one_dimension_for_each_factor_is_perfect(factors):
    constant = np.ones(len(factors["x"]))
    codes = np.stack([7 - 3 * factors["y"], factors["class"], constant, factors["x"] / 99], axis=1)
    found = scores(codes, factors)
    assert found.disentanglement == pytest.approx(1) and found.completeness == pytest.approx(1)
    assert found.by_factor["x"] > 0.999 and found.by_factor["y"] > 0.999
    assert found.informativeness == pytest.approx(np.mean(list(found.by_factor.values())))
    gaps = mutual_information_gap(codes, factors)
    assert gaps == {name: pytest.approx(1) for name in factors}


def test_rotated_factors_are_entangled_but_as_informative(factors):
    two = {name: factors[name] for name in "xy"}
    codes = np.stack([two["x"] + two["y"], two["x"] - two["y"]], axis=1)
    found = scores(codes, two)
    assert found.disentanglement < 1e-3 and found.completeness < 1e-3
    assert found.informativeness > 0.99
    assert max(mutual_information_gap(codes, two).values()) < 0.05


def test_a_factor_in_two_dimensions_is_disentangled_but_not_complete(factors):
    two = {name: factors[name] for name in "xy"}
    codes = np.stack([two["x"], two["y"], -two["x"]], axis=1)
    found = scores(codes, two)
    assert found.disentanglement == pytest.approx(1, abs=1e-6)
    half = 1 - np.log(2) / np.log(3)  # of x; it has as much importance as y
    assert found.completeness == pytest.approx((1 + half) / 2, abs=1e-4)
    gaps = mutual_information_gap(codes, two)
    assert gaps["x"] == pytest.approx(0, abs=1e-9) and gaps["y"] == pytest.approx(1)


def test_mean_square_correlation_ignores_scale_and_constant_dimensions():
    codes = np.random.default_rng(0).normal(size=(50, 4)) * (1, 10, 0.1, 3)
    codes[:, 3] += codes[:, 1]
    squares = np.square(np.corrcoef(codes, rowvar=False))
    expected = (squares.sum() - 4) / 12
    assert mean_square_correlation(codes) == pytest.approx(expected)
    constant = np.concatenate([codes, np.full((50, 1), 7.0)], axis=1)
    assert mean_square_correlation(constant) == pytest.approx(expected * 12 / 20)


def test_noise_is_not_informative(factors):
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(len(factors["x"]), 5)) for _ in range(2))
    found = dci((train, factors), (test, factors))
    assert abs(found.informativeness) < 0.1
    assert max(mutual_information_gap(test, factors).values()) < 0.1


def test_lasso_meets_the_conditions_of_its_minimum():
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(50, 8)) @ rng.normal(size=(8, 8))
    outputs = inputs[:, :2] + rng.normal(size=(50, 2))
    inputs, outputs, penalty = inputs - inputs.mean(0), outputs - outputs.mean(0), 0.3
    weights = lasso(inputs, outputs, penalty)
    slopes = inputs.T @ (outputs - inputs @ weights) / len(inputs)
    used = weights != 0
    assert used.any() and not used.all()
    np.testing.assert_allclose(slopes[used], penalty * np.sign(weights[used]), atol=1e-3)
    assert np.abs(slopes[~used]).max() <= penalty + 1e-3
