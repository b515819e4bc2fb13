"""Weighted k-nearest-neighbor classification of frozen features."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from can_jax.features.unit_length import unit

BANK_CHUNK = 65536  # the number of bank vectors compared at a time, which limits memory use
VOTE_CHUNK = 4096  # the number of queries whose votes are counted at a time


class Neighbors(NamedTuple):
    """The nearest neighbors of each query in a bank of feature vectors, in order of decreasing
    similarity.

    Attributes:
        similarity: The cosine similarity of each neighbor to the query.
        indices: The index of each neighbor in the bank.
    """

    similarity: Float[np.ndarray, "queries k"]
    indices: Int[np.ndarray, "queries k"]


@functools.partial(jax.jit, static_argnames="k")
def _nearest(
    bank: Float[Array, "chunks size width"],
    count: Int[Array, ""],
    queries: Float[Array, "queries width"],
    k: int,
) -> tuple[Float[Array, "queries k"], Int[Array, "queries k"]]:
    """Return the similarities and indices of the ``k`` nearest neighbors of each query, merged over
    the chunks of the bank.

    Args:
        bank: The feature vectors to search, scaled to length 1, padded and split into chunks.
        count: The number of feature vectors in the bank, excluding padding.
        queries: The feature vectors for which to find neighbors, scaled to length 1.
        k: The number of neighbors per query, at most ``count``.
    """
    chunks, size, _ = bank.shape

    def merge(
        best: tuple[Array, Array], part: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        chunk, first = part
        # Without "highest", accelerators multiply float32 at reduced precision.
        products = jnp.matmul(queries, chunk.T, precision="highest")
        similarity = jnp.where(first + jnp.arange(size) < count, products, -jnp.inf)
        top, positions = jax.lax.top_k(similarity, min(k, size))
        # Earlier neighbors come first, so that ties are broken as without chunks.
        values = jnp.concatenate([best[0], top], axis=1)
        indices = jnp.concatenate([best[1], first + positions], axis=1)
        values, positions = jax.lax.top_k(values, k)
        return (values, jnp.take_along_axis(indices, positions, axis=1)), None

    initial = (jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), -1))
    result, _ = jax.lax.scan(merge, initial, (bank, size * jnp.arange(chunks)))
    return result


def nearest(
    bank: Float[np.ndarray, "bank width"],
    queries: Float[np.ndarray, "queries width"],
    k: int,
    chunk: int = 1024,
    bank_chunk: int = BANK_CHUNK,
) -> Neighbors:
    """Return the ``k`` feature vectors of a bank with the highest cosine similarity to each query.

    The search is exact; it compares each query with all vectors of the bank.

    Args:
        bank: The feature vectors to search.
        queries: The feature vectors for which to find neighbors.
        k: The number of neighbors per query; reduced to the size of the bank if larger.
        chunk: The number of queries to process at a time, which limits the memory use.
        bank_chunk: The number of bank vectors to compare at a time, which limits the memory use.
    """
    unit_bank, unit_queries = (unit(x, x.dtype).astype(np.float32) for x in (bank, queries))
    count, size = len(bank), min(bank_chunk, len(bank))
    padding = -count % size
    chunks = np.pad(unit_bank, [(0, padding), (0, 0)]).reshape(-1, size, bank.shape[1])
    on_device, k = jnp.asarray(chunks), min(k, count)
    parts = [
        jax.device_get(_nearest(on_device, jnp.int32(count), unit_queries[i : i + chunk], k))
        for i in range(0, len(queries), chunk)
    ]
    return Neighbors(*map(np.concatenate, zip(*parts, strict=True)))


def vote(
    neighbors: Neighbors, labels: Int[np.ndarray, " bank"], k: int, temperature: float
) -> Int[np.ndarray, " queries"]:
    """Return the predicted label of each query, by a weighted vote of its ``k`` nearest neighbors.

    The weight of a vote is ``exp(similarity / temperature)`` (arXiv 1805.01978). Ties go to the
    smallest label. The memory use grows with ``k``, not with the number of classes.
    """
    parts = [
        _vote(neighbors.similarity[rows, :k], labels[neighbors.indices[rows, :k]], temperature)
        for start in range(0, len(neighbors.indices), VOTE_CHUNK)
        for rows in [slice(start, start + VOTE_CHUNK)]
    ]
    return np.concatenate(parts) if parts else labels[:0]


def _vote(
    similarity: Float[np.ndarray, "queries k"],
    labels: Int[np.ndarray, "queries k"],
    temperature: float,
) -> Int[np.ndarray, " queries"]:
    """Return, for each query, the label whose votes have the largest total weight."""
    # The nearest neighbor comes first, so the largest weight is 1.
    weights = np.exp((similarity - similarity[:, :1]) / temperature)
    # In each row, a label's votes are summed in the column of the label's rank among the labels of
    # the row, so k columns suffice.
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
    """Return the predicted label of each query, by a weighted vote of its ``k`` nearest neighbors
    in a bank.

    If ``k`` exceeds the size of the bank, all vectors of the bank vote.
    """
    return vote(nearest(bank, queries, k), labels, k, temperature)


def knn_accuracy(
    bank: Float[np.ndarray, "bank width"],
    bank_labels: Int[np.ndarray, " bank"],
    queries: Float[np.ndarray, "queries width"],
    query_labels: Int[np.ndarray, " queries"],
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Return the percentage of queries that `knn_predictions` classifies correctly."""
    predictions = knn_predictions(bank, bank_labels, queries, k, temperature)
    return 100.0 * float(np.mean(predictions == query_labels))
