"""Few-shot classification by ridge regression in closed form, as in big_vision."""

import numpy as np
from jaxtyping import Float, Int

SCORES = 2**26  # the maximum number of scores (queries times classes) computed at a time
BIAS = 100.0  # the constant feature; its size makes the penalty on its weight negligible


def draw_shots(
    labels: Int[np.ndarray, " examples"], shots: int, rng: np.random.Generator
) -> Int[np.ndarray, " drawn"]:
    """Return the indices of up to ``shots`` random examples of each class."""
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
    """Predict the class of each query by ridge regression, with the target 1 for the true class and
    -1 for every other class.

    The regression minimizes the squared error plus ``ridge`` times the sum of the squared weights.
    Features and queries are standardized with the mean and standard deviation of ``features``, and
    a constant is appended for the bias.

    If there are fewer examples than weights per class, the dual form of the problem is solved. The
    dual form gives the same weights as the primal form.

    Args:
        features: The feature vectors of the labeled examples.
        labels: The class of each labeled example, as any integer.
        queries: The feature vectors to classify.
        ridge: The strength of the L2 penalty on the weights, above 0.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-5

    def prepared(x: np.ndarray) -> np.ndarray:
        standard = (x.astype(np.float64) - mean) / deviation
        return np.concatenate([standard, np.full((len(x), 1), BIAS)], axis=1)

    x = prepared(features)
    classes, class_index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(x) < x.shape[1]:
        targets = 2.0 * np.eye(len(classes))[class_index] - 1
        dual = np.linalg.solve(x @ x.T + ridge * np.eye(len(x)), targets)
        weights = x.T @ dual
    else:
        of_class = np.add.reduceat(
            x[np.argsort(class_index, kind="stable")], sizes.cumsum() - sizes
        )
        products = 2.0 * of_class.T - x.sum(axis=0)[:, None]  # x.T @ targets
        weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), products)
    chunk = max(1, SCORES // len(classes))
    parts = [
        (prepared(queries[i : i + chunk]) @ weights).argmax(axis=1)
        for i in range(0, len(queries), chunk)
    ]
    return classes[np.concatenate(parts)]
