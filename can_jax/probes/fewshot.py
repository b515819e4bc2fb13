"""Few-shot classification in closed form: ridge regression to the classes, as in big_vision."""

import numpy as np
from jaxtyping import Float, Int

BIAS = 100.0  # the constant feature: so large that the penalty hardly holds it back


def draw_shots(
    labels: Int[np.ndarray, " examples"], shots: int, rng: np.random.Generator
) -> Int[np.ndarray, " drawn"]:
    """Numbers of ``shots`` examples of each class, all of a class that has fewer."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    return np.concatenate(
        [order[start : start + min(shots, size)] for start, size in zip(starts, sizes, strict=True)]
    )


def ridge_predictions(
    features: Float[np.ndarray, "examples width"],
    labels: Int[np.ndarray, " examples"],
    queries: Float[np.ndarray, "queries width"],
    ridge: float,
) -> Int[np.ndarray, " queries"]:
    """Classes by the regression of targets 1 (its class) and -1 (any other) that minimises the
    squared error plus ``ridge`` times the squared weights.

    Features are standardised by those of the examples, and a constant is added to them. With fewer
    examples than features the dual form is solved, which has the same solution.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-5

    def prepared(x: np.ndarray) -> np.ndarray:
        standard = (x.astype(np.float64) - mean) / deviation
        return np.concatenate([standard, np.full((len(x), 1), BIAS)], axis=1)

    x, targets = prepared(features), 2.0 * np.eye(int(labels.max()) + 1)[labels] - 1
    if len(x) < x.shape[1]:
        dual = np.linalg.solve(x @ x.T + ridge * np.eye(len(x)), targets)
        weights = x.T @ dual
    else:
        weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ targets)
    return (prepared(queries) @ weights).argmax(axis=1)
