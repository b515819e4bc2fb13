"""Metrics of disentanglement: DCI and the mutual information gap, of codes with known factors.

- DCI (Eastwood and Williams, ICLR 2018, openreview By-7dz-AZ): a lasso regression predicts each
  factor from all dimensions of the code. The absolute coefficients are the importances. A dimension
  is disentangled if it is important for one factor only. A factor is represented completely if one
  dimension alone is important for it.
- MIG (arXiv 1802.04942): the gap between the largest and the second largest mutual information of a
  dimension with a factor, over the entropy of the factor, averaged over factors.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Codes = Float[np.ndarray, "examples dimensions"]
Factors = Mapping[str, np.ndarray]  # integers are classes, other values are continuous
CODE_BINS, FACTOR_BINS = 20, 10  # equal bins between the extremes; 20 as in disentanglement_lib
STEPS = 1000  # the most steps of the lasso's solver


class Dci(NamedTuple):
    """The scores of DCI.

    Attributes:
        disentanglement: 1 if each dimension is important for one factor only, 0 if for all equally.
        completeness: 1 if each factor depends on one dimension only, 0 if on all equally.
        informativeness: The mean over factors of the explained variance of held-out examples.
        by_factor: The explained variance of each factor.
        importances: The importance of each dimension for each factor.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    by_factor: dict[str, float]
    importances: Float[np.ndarray, "dimensions factors"]


def targets(values: np.ndarray, like: np.ndarray) -> Float[np.ndarray, "examples columns"]:
    """Return the columns of a factor that are regressed: one per class, or the values.

    Args:
        values: The factor.
        like: The factor of the training examples, which determines the classes.
    """
    if np.issubdtype(like.dtype, np.integer):
        return (values[:, None] == np.unique(like)).astype(np.float64)
    return values.astype(np.float64)[:, None]


def lasso(
    inputs: Codes, outputs: Float[np.ndarray, "examples columns"], penalty: float
) -> Float[np.ndarray, "dimensions columns"]:
    """Minimize ``|outputs - inputs W|^2 / (2 examples) + penalty |W|_1`` by FISTA.

    Args:
        inputs: The inputs, centered.
        outputs: The outputs, centered.
        penalty: The factor of the absolute coefficients.
    """
    gram, right = inputs.T @ inputs / len(inputs), inputs.T @ outputs / len(inputs)
    rate = 1 / max(float(np.linalg.eigvalsh(gram)[-1]), 1e-12)
    weights = ahead = np.zeros_like(right)
    momentum = 1.0
    for _ in range(STEPS):
        moved = ahead - rate * (gram @ ahead - right)
        new = np.sign(moved) * np.maximum(np.abs(moved) - rate * penalty, 0)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / following * (new - weights)
        change, weights, momentum = np.abs(new - weights).max(), new, following
        if change < 1e-7:
            break
    return weights


def one_minus_entropy(
    importances: Float[np.ndarray, "rows columns"],
) -> Float[np.ndarray, " rows"]:
    """Return 1 minus the entropy of each row's shares, in units of that of equal shares.

    A row of zeros counts as equal shares.
    """
    count = importances.shape[1]
    total = importances.sum(axis=1, keepdims=True)
    return 1 - entropy(np.where(total > 0, importances, 1.0)) / np.log(max(count, 2))


def dci(
    train: tuple[Float[np.ndarray, "train dimensions"], Factors],
    test: tuple[Float[np.ndarray, "test dimensions"], Factors],
    penalty: float = 0.02,
) -> Dci:
    """Return the scores of DCI.

    Dimensions and factors are standardized by the training examples. Scores of dimensions and of
    factors are averaged with their shares of all importances as weights.

    Args:
        train: The codes and the factors with which the regressions are fitted.
        test: The codes and the factors with which they are evaluated.
        penalty: The penalty of the lasso; the default is that of the authors' code.
    """
    mean, deviation = (
        train[0].mean(axis=0, dtype=np.float64),
        train[0].std(axis=0, dtype=np.float64),
    )
    scale = np.where(deviation > 1e-9, deviation, np.inf)  # constant dimensions become 0
    inputs, others = ((codes - mean) / scale for codes in (train[0], test[0]))
    columns = {name: targets(values, values) for name, values in train[1].items()}
    centers = {name: column.mean(axis=0) for name, column in columns.items()}
    spreads = {name: np.maximum(column.std(axis=0), 1e-12) for name, column in columns.items()}
    outputs = [(columns[name] - centers[name]) / spreads[name] for name in columns]
    weights = lasso(inputs, np.concatenate(outputs, axis=1), penalty)
    starts = np.cumsum([column.shape[1] for column in outputs])[:-1]
    by_name = dict(zip(columns, np.split(weights, starts, axis=1), strict=True))
    importances = np.stack([np.abs(part).mean(axis=1) for part in by_name.values()], axis=1)
    by_factor = {}
    for name, part in by_name.items():
        wanted = (targets(test[1][name], train[1][name]) - centers[name]) / spreads[name]
        errors = np.square(wanted - others @ part).sum()
        by_factor[name] = float(1 - errors / max(np.square(wanted - wanted.mean(0)).sum(), 1e-12))
    total = max(importances.sum(), 1e-300)
    return Dci(
        float(one_minus_entropy(importances) @ importances.sum(axis=1) / total),
        float(one_minus_entropy(importances.T) @ importances.sum(axis=0) / total),
        float(np.mean(list(by_factor.values()))),
        by_factor,
        importances,
    )


def discretize(values: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin of each value, of equal bins between the extremes of its column.

    Args:
        values: The values; examples are along the first axis.
        bins: The number of bins.
    """
    low, high = values.min(axis=0), values.max(axis=0)
    width = np.where(high > low, high - low, 1)
    return np.minimum((bins * ((values - low) / width)).astype(np.int64), bins - 1)


def entropy(counts: np.ndarray) -> np.ndarray:
    """Return the entropy in nats of counts or other nonnegative weights along the last axis."""
    shares = counts / counts.sum(axis=-1, keepdims=True)
    return np.asarray(-(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=-1))


def mutual_information_gap(codes: Codes, factors: Factors) -> dict[str, float]:
    """Return the mutual information gap of each factor, from 0 to 1.

    Mutual information is that of a histogram: `CODE_BINS` for a dimension, `FACTOR_BINS` for a
    continuous factor. With few examples it is biased upwards, alike for all dimensions.

    Args:
        codes: The codes.
        factors: The factors of the same examples.
    """
    cut = discretize(codes.astype(np.float64), CODE_BINS)
    dimensions = codes.shape[1]
    own = np.stack([np.bincount(column, minlength=CODE_BINS) for column in cut.T])
    gaps = {}
    for name, values in factors.items():
        if np.issubdtype(values.dtype, np.integer):
            level = np.unique(values, return_inverse=True)[1]
        else:
            level = discretize(values.astype(np.float64), FACTOR_BINS)
        levels = int(np.max(level)) + 1
        cell = (np.arange(dimensions) * levels + level[:, None]) * CODE_BINS + cut
        joint = np.bincount(cell.reshape(-1), minlength=dimensions * levels * CODE_BINS)
        both = entropy(joint.reshape(dimensions, -1))
        alone = float(entropy(np.bincount(level)))
        shared = np.sort(np.append(entropy(own) + alone - both, 0.0))
        gaps[name] = float((shared[-1] - shared[-2]) / alone) if alone > 0 else 0.0
    return gaps
