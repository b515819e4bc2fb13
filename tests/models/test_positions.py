import jax.numpy as jnp
import numpy as np
import pytest

from can_jax.models.positions import sincos_2d, sincos_level
from tests.helpers import oracle


@pytest.mark.parametrize(("grid", "width"), [((1, 1), 4), ((3, 5), 8), ((14, 14), 192)])
def test_positions_follow_the_formula(grid, width):
    np.testing.assert_allclose(sincos_2d(grid, width), oracle.sincos_2d(*grid, width), atol=1e-6)


def test_places_are_told_apart():
    assert len(np.unique(sincos_2d((16, 16), 64).round(5), axis=0)) == 256


def test_width_that_is_no_multiple_of_four_is_refused():
    with pytest.raises(ValueError, match="divisible by 4"):
        sincos_2d((2, 2), 6)


def test_level_follows_the_formula():
    level = np.array([0.0, 0.05, 700.0], np.float32)
    np.testing.assert_allclose(
        sincos_level(jnp.asarray(level), 12), oracle.sincos_level(level, 12), atol=1e-4
    )


def test_literal_level_is_nearly_constant_and_scaled_is_not():
    sigma = jnp.linspace(0, 0.05, 50)
    assert float(sincos_level(sigma, 64).std(0).max()) < 0.02
    assert float(sincos_level(sigma * 1000 / 0.05, 64).std(0).max()) > 0.5
