"""Metrics of representation quality: alignment, uniformity, tolerance and dead dimensions."""

import numpy as np
from jaxtyping import Float, Int

from can_jax.features.unit_length import unit

DEAD = 1e-3  # the fraction of the median deviation up to which a dimension counts as dead
PAIRS = 2**20  # pairs of examples evaluated, at most


def alignment(
    one: Float[np.ndarray, "images width"], other: Float[np.ndarray, "images width"]
) -> float:
    """Return the mean squared distance on the sphere between two views of an image (arXiv
    2005.10242).

    It is 0 if the views coincide, 2 if they are orthogonal, and at most 4.
    """
    return float(((unit(one) - unit(other)) ** 2).sum(axis=1).mean())


def _pairs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of different examples: all of them, or `PAIRS` at random."""
    if count * (count - 1) // 2 <= PAIRS:
        return np.triu_indices(count, 1)
    rng = np.random.default_rng(seed)
    one = rng.integers(0, count, PAIRS)
    return one, (one + rng.integers(1, count, PAIRS)) % count


def _products(on_sphere: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the inner products of pairs, computed in blocks to save memory."""
    parts = [
        np.einsum("pw,pw->p", on_sphere[one[i : i + 65536]], on_sphere[other[i : i + 65536]])
        for i in range(0, len(one), 65536)
    ]
    return np.concatenate(parts)


def uniformity(features: Float[np.ndarray, "examples width"], seed: int = 0) -> float:
    """Return ``log mean exp(-2 |x - y|²)`` over pairs on the sphere (arXiv 2005.10242).

    It is 0 for a single point, and about -4 for a uniform distribution in many dimensions.
    """
    products = _products(unit(features), *_pairs(len(features), seed))
    return float(np.log(np.mean(np.exp(-4.0 * (1.0 - products)))))


def tolerance(
    features: Float[np.ndarray, "examples width"], labels: Int[np.ndarray, " examples"]
) -> float | None:
    """Return the mean cosine over pairs of the same class (arXiv 2012.09740), or None without a
    pair.

    The ordered pairs of a class sum to the squared length of its sum minus the squared lengths of
    its members.
    """
    _, class_index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    on_sphere = unit(features)
    sums = np.zeros((len(sizes), features.shape[1]))
    np.add.at(sums, class_index, on_sphere)
    pairs = (sizes * (sizes - 1)).sum()
    return float(((sums**2).sum() - (on_sphere**2).sum()) / pairs) if pairs else None


def dead_dimensions(features: Float[np.ndarray, "examples width"]) -> int:
    """Return the number of features that hardly vary: at most `DEAD` of the median deviation."""
    deviations = features.astype(np.float64).std(axis=0)
    return int((deviations <= DEAD * np.median(deviations)).sum())
