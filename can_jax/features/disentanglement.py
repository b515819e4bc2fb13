"""Disentanglement metrics of codes whose generative factors are known: DCI and MIG.

- DCI (Eastwood and Williams, ICLR 2018, openreview By-7dz-AZ): a lasso regression predicts each
  factor from all dimensions of the code. The importance of a dimension for a factor is its absolute
  coefficient, averaged over the regression targets of the factor. Disentanglement is high if each
  dimension is important for only one factor. Completeness is high if only one dimension is
  important for each factor.

- MIG, the mutual information gap (arXiv 1802.04942): the mutual information of a factor with the
  most informative dimension, minus that with the second most informative one. The gap is divided by
  the entropy of the factor, and averaged over factors.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Codes = Float[np.ndarray, "examples dimensions"]
Factors = Mapping[str, np.ndarray]  # integer arrays hold classes, others continuous values
CODE_BINS, FACTOR_BINS = 20, 10  # numbers of histogram bins; 20 as in disentanglement_lib
STEPS = 1000  # the maximum number of steps of the lasso solver


class Dci(NamedTuple):
    """The scores of DCI: disentanglement, completeness and informativeness.

    Attributes:
        disentanglement: From 0 (each dimension is equally important for all factors) to 1 (each
            dimension is important for only one factor).
        completeness: From 0 (each factor depends equally on all dimensions) to 1 (each factor
            depends on only one dimension).
        informativeness: The fraction of variance explained on the test examples, averaged over
            factors.
        by_factor: The fraction of variance explained on the test examples, for each factor.
        importances: The importance of each dimension for each factor.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    by_factor: dict[str, float]
    importances: Float[np.ndarray, "dimensions factors"]


def targets(values: np.ndarray, like: np.ndarray) -> Float[np.ndarray, "examples columns"]:
    """Return the regression targets of a factor: one-hot classes for integer values, and the values
    themselves for floating-point values.

    Args:
        values: The value of the factor for each example.
        like: The values of the same factor for the training examples. If the values are
            integers, each distinct value is a class.
    """
    if np.issubdtype(like.dtype, np.integer):
        return (values[:, None] == np.unique(like)).astype(np.float64)
    return values.astype(np.float64)[:, None]


def lasso(
    inputs: Codes, outputs: Float[np.ndarray, "examples columns"], penalty: float
) -> Float[np.ndarray, "dimensions columns"]:
    """Return the ``W`` that minimizes ``|outputs - inputs W|^2 / (2 n) + penalty |W|_1`` for n
    examples.

    Args:
        inputs: The inputs of the regression, centered to mean 0.
        outputs: The target values, centered to mean 0.
        penalty: The strength of the L1 penalty, at least 0.
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
    """Return 1 minus the normalized entropy of each row: 0 for a uniform row, 1 for a row with one
    nonzero entry.

    A row of zeros is treated as a uniform distribution.
    """
    count = importances.shape[1]
    total = importances.sum(axis=1, keepdims=True)
    return 1 - entropy(np.where(total > 0, importances, 1.0)) / np.log(max(count, 2))


def dci(
    train: tuple[Float[np.ndarray, "train dimensions"], Factors],
    test: tuple[Float[np.ndarray, "test dimensions"], Factors],
    penalty: float = 0.02,
) -> Dci:
    """Return the DCI scores of codes whose generative factors are known.

    Dimensions and factors are standardized with statistics of the training examples. The
    disentanglement score is a mean over dimensions, and the completeness score a mean over factors,
    both weighted by importance.

    Args:
        train: The codes and the factors of the training examples, on which the regressions are
            fitted.
        test: The codes and the factors of the test examples, on which the regressions are
            evaluated.
        penalty: The strength of the L1 penalty; the default is that of the DCI authors' code.
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


def mean_square_correlation(codes: Codes) -> float:
    """Return the mean squared correlation over all pairs of dimensions, a value from 0 to 1.

    Constant dimensions count as uncorrelated.
    """
    centered = codes - codes.mean(axis=0, dtype=np.float64)
    norms = np.linalg.norm(centered, axis=0)
    unit = centered / np.where(norms > 1e-9, norms, np.inf)
    matrix = unit.T @ unit
    width = matrix.shape[0]
    others = np.square(matrix).sum() - np.square(np.diagonal(matrix)).sum()
    return float(others / max(width * (width - 1), 1))


def discretize(values: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin index of each value, for bins that divide the range of each column into equal
    parts.

    Args:
        values: The values to discretize, with examples along the first axis.
        bins: The number of bins per column.
    """
    low, high = values.min(axis=0), values.max(axis=0)
    width = np.where(high > low, high - low, 1)
    return np.minimum((bins * ((values - low) / width)).astype(np.int64), bins - 1)


def entropy(counts: np.ndarray) -> np.ndarray:
    """Return the entropy along the last axis, in nats.

    The nonnegative ``counts`` are first divided by their sum along the last axis.
    """
    shares = counts / counts.sum(axis=-1, keepdims=True)
    return np.asarray(-(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=-1))


def mutual_information_gap(codes: Codes, factors: Factors) -> dict[str, float]:
    """Return the mutual information gap of each factor, from 0 to 1.

    Mutual information is estimated from histograms with `CODE_BINS` bins for a dimension and
    `FACTOR_BINS` bins for a continuous factor. With few examples, the estimated mutual information
    is too high for all dimensions.

    Args:
        codes: The code (feature vector) of each example.
        factors: The generative factors of the same examples, by name.
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
