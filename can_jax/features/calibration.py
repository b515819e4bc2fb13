"""Calibration metrics of a classifier: expected calibration error, negative log-likelihood and
Brier score."""

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax


def calibration(
    logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"], bins: int
) -> dict[str, float]:
    """Return three calibration metrics of a classifier; lower values are better.

    Args:
        logits: The logits of each example, of shape (examples, classes).
        labels: The index of the true class of each example.
        bins: The number of equally wide confidence bins in (0, 1] for ``ece``.

    Returns:
        ``ece``: The expected calibration error in percent (arXiv 1706.04599). The calibration
        error is the mean of |accuracy - confidence| over bins, weighted by the number of examples
        in each bin. ``nll``: The mean negative log-likelihood in nats. ``brier``: The mean squared
        distance between the predicted probabilities and the one-hot label, from 0 to 2.
    """
    probs = softmax(logits.astype(np.float64), axis=1)
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    bin_index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_index, right - confidence, minlength=bins)
    rows = np.arange(len(labels))
    true_probs = probs[rows, labels]
    probs[rows, labels] -= 1  # turns probabilities into their difference from the truth
    return {
        "ece": 100.0 * float(np.abs(gaps).sum() / len(labels)),
        "nll": float(-np.log(np.maximum(true_probs, 1e-300)).mean()),
        "brier": float((probs**2).sum(axis=1).mean()),
    }
