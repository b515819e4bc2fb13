"""Signs of how a representation uses its space."""

import numpy as np
from jaxtyping import Float, Int

DEAD = 1e-3  # of the median deviation, below which a dimension says nothing
PAIRS = 2**20  # that are looked at, at most


def unit(features: Float[np.ndarray, "examples width"]) -> Float[np.ndarray, "examples width"]:
    """Features at length 1."""
    wide = features.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def alignment(
    one: Float[np.ndarray, "images width"], other: Float[np.ndarray, "images width"]
) -> float:
    """The mean squared distance of two views of an image on the sphere (arXiv 2005.10242): 0 where
    they fall together, 2 where they are as far apart as any."""
    return float(((unit(one) - unit(other)) ** 2).sum(axis=1).mean())


def _pairs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of different examples: all of them, or `PAIRS` at random."""
    if count * (count - 1) // 2 <= PAIRS:
        return np.triu_indices(count, 1)
    rng = np.random.default_rng(seed)
    one = rng.integers(0, count, PAIRS)
    return one, (one + rng.integers(1, count, PAIRS)) % count


def _products(on_sphere: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Inner products of pairs, some at a time."""
    parts = [
        np.einsum("pw,pw->p", on_sphere[one[i : i + 65536]], on_sphere[other[i : i + 65536]])
        for i in range(0, len(one), 65536)
    ]
    return np.concatenate(parts)


def uniformity(features: Float[np.ndarray, "examples width"], seed: int = 0) -> float:
    """``log mean exp(-2 |x - y|²)`` over pairs on the sphere (arXiv 2005.10242): 0 for a single
    point, about -4 for an even spread in many dimensions."""
    products = _products(unit(features), *_pairs(len(features), seed))
    return float(np.log(np.mean(np.exp(-4.0 * (1.0 - products)))))


def tolerance(
    features: Float[np.ndarray, "examples width"], labels: Int[np.ndarray, " examples"]
) -> float | None:
    """Return the mean cosine of all pairs of one class (arXiv 2012.09740), None if there is none.

    The cosines of a class's pairs add up to half of the squared length of its sum, less its own.
    """
    _, place, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    on_sphere = unit(features)
    sums = np.zeros((len(sizes), features.shape[1]))
    np.add.at(sums, place, on_sphere)
    pairs = (sizes * (sizes - 1)).sum()
    return float(((sums**2).sum() - (on_sphere**2).sum()) / pairs) if pairs else None


def dead_dimensions(features: Float[np.ndarray, "examples width"]) -> int:
    """How many features hardly vary."""
    deviations = features.astype(np.float64).std(axis=0)
    return int((deviations <= DEAD * np.median(deviations)).sum())
