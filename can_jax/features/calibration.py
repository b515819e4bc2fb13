"""Whether a classifier knows how sure it may be."""

import numpy as np
from jaxtyping import Float, Int


def probabilities(
    logits: Float[np.ndarray, "examples classes"],
) -> Float[np.ndarray, "examples classes"]:
    """The softmax, in double precision."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def calibration(
    logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"], bins: int
) -> dict[str, float]:
    """Three measures, smaller is better.

    Returns:
        ``ece``: the expected calibration error in percent, |accuracy - confidence| averaged over
        ``bins`` equal parts of (0, 1] by how many fall into each (arXiv 1706.04599); ``nll``: the
        mean negative log-likelihood in nats; ``brier``: the mean squared distance of the
        probabilities to the truth, summed over classes (0 to 2).
    """
    found = probabilities(logits)
    confidence, right = found.max(axis=1), found.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, right - confidence, minlength=bins)
    rows = np.arange(len(labels))
    of_truth = found[rows, labels]
    found[rows, labels] -= 1  # and so the difference to the truth
    return {
        "ece": 100.0 * float(np.abs(gaps).sum() / len(labels)),
        "nll": float(-np.log(np.maximum(of_truth, 1e-300)).mean()),
        "brier": float((found**2).sum(axis=1).mean()),
    }
