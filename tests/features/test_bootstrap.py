import numpy as np
import pytest

from can_jax.features.bootstrap import interval


@pytest.mark.parametrize("levels", [2, 4])
def test_interval_is_that_of_resampled_examples(levels):
    rng = np.random.default_rng(1)
    values = rng.integers(0, levels, 200) / (levels - 1)
    means = values[rng.integers(0, 200, (4000, 200))].mean(axis=1)
    np.testing.assert_allclose(interval(values), np.quantile(means, [0.025, 0.975]), atol=0.01)
    assert interval(np.ones(5, bool)) == (1.0, 1.0)
