import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from can_jax.features.linear import Setting, grid, train_heads


def problem(examples=600, width=12, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, 2 * examples)
    centres = rng.normal(size=(classes, width))
    features = (centres[labels] + 1.3 * rng.normal(size=(2 * examples, width))).astype(np.float32)
    features = features * rng.uniform(0.1, 5, width).astype(np.float32) + 3
    return (features[:examples], labels[:examples]), (features[examples:], labels[examples:])


def test_grid_is_each_head_trained_alone():
    (features, labels), (queries, _) = problem()
    cells = grid((0.03, 0.3), (0.0, 1e-2))
    assert cells == [Setting(0.03, 0.0), Setting(0.03, 1e-2), Setting(0.3, 0.0), Setting(0.3, 1e-2)]
    together = train_heads(features, labels, 4, cells, epochs=4, batch_size=128).logits(queries)
    assert together.shape == (4, 600, 4)
    for number, cell in enumerate(cells):
        alone = train_heads(features, labels, 4, [cell], epochs=4, batch_size=128)
        np.testing.assert_allclose(alone.logits(queries)[0], together[number], atol=2e-5)
    assert np.abs(together[0] - together[3]).max() > 0.1


@pytest.mark.parametrize("decay", [1e-3, 1e-2])
def test_head_is_scikit_learns(decay):
    (features, labels), (queries, wanted) = problem()
    heads = train_heads(features, labels, 4, [Setting(0.5, decay)], epochs=600, batch_size=600)
    mean, deviation = features.mean(0), features.std(0)
    reference = LogisticRegression(C=1 / (decay * len(labels)), max_iter=5000, tol=1e-8)
    reference.fit((features - mean) / deviation, labels)
    found = heads.logits(queries)[0].argmax(1)
    theirs = reference.predict((queries - mean) / deviation)
    assert np.mean(found == theirs) > 0.995
    assert abs(np.mean(found == wanted) - np.mean(theirs == wanted)) <= 0.002
    np.testing.assert_allclose(heads.kernel[0].T, reference.coef_, atol=2e-2)


def test_batch_larger_than_the_data():
    (features, labels), (queries, _) = problem(examples=20)
    heads = train_heads(features, labels, 4, grid((0.1,), (0.0, 1.0)), epochs=3, batch_size=512)
    np.testing.assert_array_equal(
        heads.predictions(queries, numbers=30), heads.logits(queries).argmax(axis=2)
    )
