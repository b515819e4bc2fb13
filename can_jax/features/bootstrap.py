"""Bootstrap confidence intervals of accuracies."""

from typing import Any

import numpy as np
from jaxtyping import Shaped

RESAMPLES = 10_000
LEVEL = 0.95  # the confidence level of the interval


def interval(values: Shaped[np.ndarray, " examples"]) -> tuple[float, float]:
    """Return the lower and upper bounds of the 95 % bootstrap confidence interval of the mean.

    The values are resampled 10,000 times with replacement; the bounds are quantiles of the
    resampled means. For each resample, only the count of each distinct value is drawn. This is fast
    for few distinct values, such as 0 and 1.

    Args:
        values: One value per example, such as whether its prediction is correct.
    """
    levels, counts = np.unique(values.astype(np.float64), return_counts=True)
    rng: Any = np.random.default_rng(0)
    drawn = rng.multinomial(len(values), counts / len(values), RESAMPLES)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn @ levels / len(values), [tail, 1 - tail])
    return float(low), float(high)
