import jax
import jax.numpy as jnp
import numpy as np
import pytest

from can_jax.models import masking
from tests.helpers import oracle


@pytest.mark.parametrize(
    ("height", "width", "size", "channels"), [(1, 1, 1, 1), (2, 3, 2, 3), (3, 1, 4, 8)]
)
def test_patches_and_back(height, width, size, channels):
    images = np.random.default_rng(0).normal(size=(2, height * size, width * size, channels))
    images = images.astype(np.float32)
    patches = masking.patchify(jnp.asarray(images), size)
    np.testing.assert_array_equal(patches, oracle.patchify(images, size))
    np.testing.assert_array_equal(masking.unpatchify(patches, (height, width), size), images)


@pytest.mark.parametrize(
    ("patches", "ratio", "visible"),
    [(196, 0.5, 98), (196, 0.75, 49), (10, 0.9, 1), (256, 0.0, 256), (15, 0.5, 7), (100, 0.29, 71)],
)
def test_visible_count_is_the_floor(patches, ratio, visible):
    assert masking.visible_count(patches, ratio) == visible


def test_shuffle_is_uniform_over_places():
    keys = jax.random.split(jax.random.key(0), 4000)
    shuffle = np.asarray(masking.random_shuffle(keys, 5))
    assert (np.sort(shuffle, axis=1) == np.arange(5)).all()
    for place in range(5):
        np.testing.assert_allclose(np.bincount(shuffle[:, place]) / 4000, 0.2, atol=0.03)


def test_hidden_mask_is_the_tail_of_the_shuffle():
    shuffle = jnp.array([[2, 0, 1, 3], [3, 2, 1, 0]])
    expected = [[False, True, False, True], [True, True, False, False]]
    np.testing.assert_array_equal(masking.hidden_mask(shuffle, 2), expected)


def test_gather_takes_each_rows_own():
    values = jnp.arange(24.0).reshape(2, 4, 3)
    taken = masking.gather_patches(values, jnp.array([[3, 1], [0, 0]]))
    np.testing.assert_array_equal(taken[0], values[0, jnp.array([3, 1])])
    np.testing.assert_array_equal(taken[1], values[1, jnp.array([0, 0])])
