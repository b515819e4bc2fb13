import numpy as np
import pytest
from sklearn.linear_model import Ridge

from can_jax.features import fewshot
from can_jax.features.fewshot import BIAS, draw_shots, ridge_predictions


def test_each_class_gives_its_shots_or_all_it_has():
    labels = np.array([0] * 30 + [1] * 3 + [2] * 10)
    drawn = draw_shots(labels, 5, np.random.default_rng(0))
    assert np.bincount(labels[drawn]).tolist() == [5, 3, 5]
    assert len(set(drawn.tolist())) == len(drawn)
    other = draw_shots(labels, 5, np.random.default_rng(1))
    assert set(drawn.tolist()) != set(other.tolist())
    again = draw_shots(labels, 5, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn, again)


@pytest.mark.parametrize("examples", [12, 90])  # fewer than features, and more
@pytest.mark.parametrize("ridge", [1.0, 1024.0])
def test_classes_are_those_of_ridge_regression(examples, ridge):
    rng = np.random.default_rng(3)
    labels = np.arange(examples) % 3
    centres = rng.normal(size=(3, 20))
    features = centres[labels] + rng.normal(size=(examples, 20))
    queries = centres[np.arange(200) % 3] + rng.normal(size=(200, 20))
    found = ridge_predictions(features, labels, queries, ridge)
    mean, deviation = features.mean(0), features.std(0) + 1e-5

    def prepared(x):
        return np.c_[(x - mean) / deviation, np.full(len(x), BIAS)]

    reference = Ridge(alpha=ridge, fit_intercept=False, solver="cholesky")
    reference.fit(prepared(features), 2.0 * np.eye(3)[labels] - 1)
    np.testing.assert_array_equal(found, reference.predict(prepared(queries)).argmax(1))
    assert np.mean(found == np.arange(200) % 3) > 0.8


@pytest.mark.parametrize("examples", [12, 90])
def test_labels_may_have_gaps_and_queries_are_scored_in_parts(examples, monkeypatch):
    rng = np.random.default_rng(4)
    labels = np.arange(examples) % 3
    features = rng.normal(size=(examples, 20))
    queries = rng.normal(size=(50, 20))
    wanted = ridge_predictions(features, labels, queries, 1.0)
    far = np.array([3, 500, 2**40])
    monkeypatch.setattr(fewshot, "SCORES", 12)
    np.testing.assert_array_equal(
        ridge_predictions(features, far[labels], queries, 1.0), far[wanted]
    )
