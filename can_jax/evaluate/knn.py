"""Weighted k-nearest-neighbour classification of frozen features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@functools.partial(jax.jit, static_argnames=("k", "classes", "temperature"))
def _vote(
    bank: Float[Array, "bank width"],
    labels: Int[Array, " bank"],
    queries: Float[Array, "queries width"],
    k: int,
    temperature: float,
    classes: int,
) -> Int[Array, " queries"]:
    similarity, index = jax.lax.top_k(queries @ bank.T, k)
    weights = jnp.exp((similarity - 1) / temperature)
    votes = jax.nn.one_hot(labels[index], classes) * weights[..., None]
    return votes.sum(axis=1).argmax(axis=1)


def knn_predictions(
    bank: Float[np.ndarray, "bank width"],
    labels: Int[np.ndarray, " bank"],
    queries: Float[np.ndarray, "queries width"],
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Int[np.ndarray, " queries"]:
    """The class of each query by a vote of its ``k`` most similar features of the bank.

    Similarity is the cosine; a neighbour's vote weighs ``exp(similarity / temperature)``
    (arXiv 1805.01978). A ``k`` beyond the bank's size is the bank's size.
    """
    unit_bank, unit_queries = (
        (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32)
        for x in (bank, queries)
    )
    k, classes = min(k, len(bank)), int(labels.max()) + 1
    on_device = jnp.asarray(unit_bank), jnp.asarray(labels)
    parts = [
        np.asarray(_vote(*on_device, unit_queries[i : i + chunk], k, temperature, classes))
        for i in range(0, len(queries), chunk)
    ]
    return np.concatenate(parts)


def knn_accuracy(
    bank: Float[np.ndarray, "bank width"],
    bank_labels: Int[np.ndarray, " bank"],
    queries: Float[np.ndarray, "queries width"],
    query_labels: Int[np.ndarray, " queries"],
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """The percentage of queries that `knn_predictions` classifies rightly."""
    predictions = knn_predictions(bank, bank_labels, queries, k, temperature)
    return 100.0 * float(np.mean(predictions == query_labels))
