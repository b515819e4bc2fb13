import numpy as np
import pytest

from can_jax.models.encoder import sincos_2d
from tests.helpers import oracle


@pytest.mark.parametrize(("grid", "width"), [((1, 1), 4), ((3, 5), 8), ((14, 14), 192)])
def test_positions_follow_the_formula(grid, width):
    np.testing.assert_allclose(sincos_2d(grid, width), oracle.sincos_2d(*grid, width), atol=1e-6)


def test_places_are_told_apart():
    assert len(np.unique(sincos_2d((16, 16), 64).round(5), axis=0)) == 256


def test_width_that_is_no_multiple_of_four_is_refused():
    with pytest.raises(ValueError, match="divisible by 4"):
        sincos_2d((2, 2), 6)
