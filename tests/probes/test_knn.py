import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from can_jax.probes.knn import knn_accuracy, knn_predictions, nearest, vote


def problem(seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, 12))
    labels, queries = rng.integers(0, 5, 400), rng.integers(0, 5, 150)
    noise = 0.9 * rng.normal(size=(550, 12))
    return centres[labels] + noise[:400], labels, centres[queries] + noise[400:], queries


@pytest.mark.parametrize("k", [1, 5, 20, 400])
def test_votes_are_scikit_learns(k):
    bank, labels, queries, _ = problem()
    temperature = 0.1
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp(-d / temperature)
    ).fit(bank, labels)
    near = nearest(bank, queries, k, chunk=64, bank_chunk=150)
    found = vote(near, labels, k, temperature)
    assert np.mean(found == reference.predict(queries)) > 0.99


def test_accuracy_is_in_percent_and_every_query_counts():
    bank, labels, queries, wanted = problem()
    right = np.mean(knn_predictions(bank, labels, queries) == wanted)
    assert knn_accuracy(bank, labels, queries, wanted) == pytest.approx(100 * right)
    assert knn_accuracy(bank, labels, bank, labels, k=1) == 100


def test_bank_smaller_than_k():
    bank, labels, queries, _ = problem()
    assert len(knn_predictions(bank[:3], labels[:3], queries, k=20)) == 150
