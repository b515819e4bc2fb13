"""The conversion of a step's metrics to scalars on the host."""

import math
from typing import Any

import jax
import numpy as np
from jaxtyping import Float


def effective_rank(gram: Float[np.ndarray, "width width"]) -> float:
    """Return the effective rank of embeddings: the exponential of the entropy of their spectrum.

    The spectrum consists of the singular values, normalized to sum to 1 (Roy and Vetterli, 2007;
    RankMe, arXiv 2210.02885).

    Args:
        gram: The matrix ``E.T @ E`` of embeddings ``E``, up to a positive factor.
    """
    if not np.isfinite(gram).all():
        return math.nan
    values = np.sqrt(np.clip(np.linalg.eigvalsh(gram.astype(np.float64)), 0.0, None))
    shares = values / max(values.sum(), 1e-30)
    return float(np.exp(-np.sum(shares * np.log(np.maximum(shares, 1e-30)))))


def to_scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """Fetch the metrics of a step to the host, and compute two derived metrics.

    ``embedding/gram`` is replaced by ``embedding/effective_rank``. ``denoising/explained`` is 1 for
    a perfect prediction of the noise, 0 for a prediction of zeros, and negative for a prediction
    worse than zeros.
    """
    host = dict(jax.device_get(metrics))
    if energy := host.get("denoising/energy"):
        host["denoising/explained"] = 1 - host["denoising/residual"] / energy
    if "embedding/gram" in host:
        host["embedding/effective_rank"] = effective_rank(host.pop("embedding/gram"))
    return {name: float(value) for name, value in host.items()}
