"""Metrics of representation quality: alignment, uniformity, tolerance and the number of dead
dimensions."""

import numpy as np
from jaxtyping import Float, Int

from can_jax.features.unit_length import unit

DEAD = 1e-3  # a dimension is dead up to this fraction of the median standard deviation
PAIRS = 2**20  # the maximum number of pairs of examples to evaluate


def alignment(
    one: Float[np.ndarray, "images width"], other: Float[np.ndarray, "images width"]
) -> float:
    """Return the alignment of the features of two views of each image (arXiv 2005.10242).

    Alignment is the mean squared distance between the two feature vectors of an image, after each
    vector is scaled to length 1. The squared distance is 0 for equal vectors, 2 for orthogonal
    vectors, and at most 4.
    """
    return float(((unit(one) - unit(other)) ** 2).sum(axis=1).mean())


def _pairs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of all pairs of different examples. If there are more than `PAIRS` pairs,
    return `PAIRS` random pairs instead."""
    if count * (count - 1) // 2 <= PAIRS:
        return np.triu_indices(count, 1)
    rng = np.random.default_rng(seed)
    one = rng.integers(0, count, PAIRS)
    return one, (one + rng.integers(1, count, PAIRS)) % count


def _products(on_sphere: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the inner product of the two vectors of each pair, computed in blocks to save
    memory."""
    parts = [
        np.einsum("pw,pw->p", on_sphere[one[i : i + 65536]], on_sphere[other[i : i + 65536]])
        for i in range(0, len(one), 65536)
    ]
    return np.concatenate(parts)


def uniformity(features: Float[np.ndarray, "examples width"], seed: int = 0) -> float:
    """Return the uniformity of features scaled to length 1: ``log mean exp(-2 |x - y|²)`` over
    pairs (x, y) of features (arXiv 2005.10242).

    The value is 0 if all features are equal, and about -4 for a uniform distribution in many
    dimensions.
    """
    products = _products(unit(features), *_pairs(len(features), seed))
    return float(np.log(np.mean(np.exp(-4.0 * (1.0 - products)))))


def tolerance(
    features: Float[np.ndarray, "examples width"], labels: Int[np.ndarray, " examples"]
) -> float | None:
    """Return the mean cosine similarity of pairs of examples in the same class (arXiv 2012.09740);
    None if no class has two examples.

    The sum of the similarities of all pairs in a class is computed from the sum of the feature
    vectors of the class, without a loop over pairs.
    """
    _, class_index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    on_sphere = unit(features)
    sums = np.zeros((len(sizes), features.shape[1]))
    np.add.at(sums, class_index, on_sphere)
    pairs = (sizes * (sizes - 1)).sum()
    return float(((sums**2).sum() - (on_sphere**2).sum()) / pairs) if pairs else None


def dead_dimensions(features: Float[np.ndarray, "examples width"]) -> int:
    """Return the number of feature dimensions whose standard deviation is at most `DEAD` times the
    median standard deviation."""
    deviations = features.astype(np.float64).std(axis=0)
    return int((deviations <= DEAD * np.median(deviations)).sum())
