"""Weighted k-nearest-neighbour classification of frozen features."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BANK_CHUNK = 65536  # of the bank compared at a time, so that a million images need no large matrix
VOTE_CHUNK = 4096  # queries whose votes are counted at a time


class Neighbours(NamedTuple):
    """The most similar features of a bank, nearest first."""

    similarity: Float[np.ndarray, "queries k"]  # cosine
    places: Int[np.ndarray, "queries k"]  # in the bank


@functools.partial(jax.jit, static_argnames="k")
def _nearest(
    bank: Float[Array, "chunks size width"],
    count: Int[Array, ""],
    queries: Float[Array, "queries width"],
    k: int,
) -> tuple[Float[Array, "queries k"], Int[Array, "queries k"]]:
    chunks, size, _ = bank.shape

    def merge(
        best: tuple[Array, Array], part: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        chunk, first = part
        # Accelerators multiply float32 with fewer bits unless they are told not to.
        products = jnp.matmul(queries, chunk.T, precision="highest")
        similarity = jnp.where(first + jnp.arange(size) < count, products, -jnp.inf)
        here, places = jax.lax.top_k(similarity, min(k, size))
        # The earlier ones stand in front, so that ties are broken as without chunks.
        values = jnp.concatenate([best[0], here], axis=1)
        numbers = jnp.concatenate([best[1], first + places], axis=1)
        values, places = jax.lax.top_k(values, k)
        return (values, jnp.take_along_axis(numbers, places, axis=1)), None

    nothing = (jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), -1))
    found, _ = jax.lax.scan(merge, nothing, (bank, size * jnp.arange(chunks)))
    return found


def nearest(
    bank: Float[np.ndarray, "bank width"],
    queries: Float[np.ndarray, "queries width"],
    k: int,
    chunk: int = 1024,
    bank_chunk: int = BANK_CHUNK,
) -> Neighbours:
    """The ``k`` features of the bank that are most similar to each query, by the cosine; exact.

    Args:
        bank, queries: features.
        k: how many; at most the size of the bank.
        chunk, bank_chunk: of each, compared at a time.
    """
    unit_bank, unit_queries = (
        (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32)
        for x in (bank, queries)
    )
    count, size = len(bank), min(bank_chunk, len(bank))
    padding = -count % size
    chunks = np.pad(unit_bank, [(0, padding), (0, 0)]).reshape(-1, size, bank.shape[1])
    on_device, k = jnp.asarray(chunks), min(k, count)
    parts = [
        jax.device_get(_nearest(on_device, jnp.int32(count), unit_queries[i : i + chunk], k))
        for i in range(0, len(queries), chunk)
    ]
    return Neighbours(*map(np.concatenate, zip(*parts, strict=True)))


def vote(
    neighbours: Neighbours, labels: Int[np.ndarray, " bank"], k: int, temperature: float
) -> Int[np.ndarray, " queries"]:
    """Return the class of each query by a vote of its ``k`` nearest neighbors.

    A vote weighs ``exp(similarity / temperature)`` (arXiv 1805.01978). Of classes with equal votes
    the smallest label wins. Memory grows with ``k`` and not with the number of classes.
    """
    parts = [
        _vote(neighbours.similarity[rows, :k], labels[neighbours.places[rows, :k]], temperature)
        for start in range(0, len(neighbours.places), VOTE_CHUNK)
        for rows in [slice(start, start + VOTE_CHUNK)]
    ]
    return np.concatenate(parts) if parts else labels[:0]


def _vote(
    similarity: Float[np.ndarray, "queries k"],
    labels: Int[np.ndarray, "queries k"],
    temperature: float,
) -> Int[np.ndarray, " queries"]:
    """Return the label with the largest sum of weights in each row."""
    weights = np.exp((similarity - similarity[:, :1]) / temperature)  # the largest is 1
    # A class gets the column of its rank among the classes of its row, so that k columns suffice.
    order = np.argsort(labels, axis=1, kind="stable")
    ranked = np.take_along_axis(labels, order, axis=1)
    rank = np.zeros(labels.shape, np.int64)
    rank[:, 1:] = np.cumsum(ranked[:, 1:] != ranked[:, :-1], axis=1)
    columns = np.empty_like(rank)
    np.put_along_axis(columns, order, rank, axis=1)
    rows = np.arange(len(labels))
    votes = np.zeros(labels.shape)
    np.add.at(votes, (rows[:, None], columns), weights)
    return ranked[rows, (rank == votes.argmax(axis=1)[:, None]).argmax(axis=1)]


def knn_predictions(
    bank: Float[np.ndarray, "bank width"],
    labels: Int[np.ndarray, " bank"],
    queries: Float[np.ndarray, "queries width"],
    k: int = 20,
    temperature: float = 0.07,
) -> Int[np.ndarray, " queries"]:
    """The class of each query by a `vote` of its `nearest`. A ``k`` beyond the bank's size is the
    bank's size."""
    return vote(nearest(bank, queries, k), labels, k, temperature)


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
