import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from can_jax.features import embedding_map, knn, linear
from can_jax.features.knn import Neighbors, knn_accuracy, knn_predictions, nearest, vote


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


def dense_vote(neighbors, labels, k, temperature):
    """The vote with a column for every label up to the largest."""
    similarity = neighbors.similarity[:, :k]
    weights = np.exp((similarity - similarity[:, :1]) / temperature)
    votes = np.zeros((len(similarity), labels.max() + 1))
    np.add.at(votes, (np.arange(len(votes))[:, None], labels[neighbors.indices[:, :k]]), weights)
    return votes.argmax(axis=1)


@pytest.mark.parametrize("levels", [1, 3, 1000])  # of similarity: with few of them votes are equal
def test_votes_and_ties_are_those_of_a_column_for_every_label(levels, monkeypatch):
    monkeypatch.setattr(knn, "VOTE_CHUNK", 7)
    rng = np.random.default_rng(levels)
    labels = rng.integers(0, 9, 40)
    similarity = np.round(rng.random((60, 25)) * levels) / levels
    near = Neighbors(
        -np.sort(-similarity, axis=1).astype(np.float32), rng.integers(0, 40, (60, 25))
    )
    for k in (1, 2, 7, 25, 30):
        found = vote(near, labels, k, 0.07)
        np.testing.assert_array_equal(found, dense_vote(near, labels, k, 0.07))


def test_memory_of_a_vote_does_not_grow_with_the_labels():
    labels = np.zeros(1000, np.int64)
    labels[5] = 2**40
    near = Neighbors(np.ones((6000, 20), np.float32), np.full((6000, 20), 5))
    tracemalloc.start()
    found = vote(near, labels, 20, 0.07)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found == 2**40).all() and peak < 20e6


def test_no_query_has_no_class():
    none = Neighbors(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64))
    assert vote(none, np.arange(3), 3, 0.07).shape == (0,)


def products_of(program):
    """The precision of every matrix product of a program, those of loops among them."""
    for equation in program.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products_of(inner)


def test_products_of_probes_are_exact_on_accelerators():
    """A CPU is exact anyway, so what is asked for is looked at."""
    x, number = jnp.ones((6, 4)), jnp.int32(6)
    heads = {"kernel": jnp.ones((2, 4, 3)), "bias": jnp.ones((2, 3))}
    state = jax.vmap(linear._optimizer(0.0, 0.0).init)(heads)
    batches, labels = jnp.zeros((1, 2), jnp.int32), jnp.zeros(6, jnp.int32)
    programs = [
        jax.make_jaxpr(lambda: knn._nearest(x[None], number, x, 2))(),
        jax.make_jaxpr(lambda: linear._logits(*heads.values(), x))(),
        jax.make_jaxpr(
            lambda: linear._epoch(heads, state, x, labels, batches, jnp.ones((1, 2)), jnp.ones(2))
        )(),
        jax.make_jaxpr(lambda: embedding_map._descend(x[:, :2], jnp.ones((6, 6)) / 36))(),
    ]
    for program in programs:
        found = list(products_of(program.jaxpr))
        assert found and all(set(p) == {jax.lax.Precision.HIGHEST} for p in found)
