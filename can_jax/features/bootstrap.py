"""Bootstrap intervals of accuracies."""

from typing import Any

import numpy as np
from jaxtyping import Shaped

RESAMPLES = 10_000
LEVEL = 0.95  # the probability that an interval covers


def interval(values: Shaped[np.ndarray, " examples"]) -> tuple[float, float]:
    """Return the bootstrap interval of the mean of some values over examples.

    The examples are resampled with replacement, and the interval holds `LEVEL` of the means. The
    values may have few distinct levels only, such as right and wrong: a resample is then a draw of
    how often each level occurs.

    Args:
        values: One value for each example, such as whether its prediction is right.
    """
    levels, counts = np.unique(values.astype(np.float64), return_counts=True)
    rng: Any = np.random.default_rng(0)
    drawn = rng.multinomial(len(values), counts / len(values), RESAMPLES)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn @ levels / len(values), [tail, 1 - tail])
    return float(low), float(high)
