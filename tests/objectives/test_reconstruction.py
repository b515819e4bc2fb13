import jax.numpy as jnp
import numpy as np
import pytest

from can_jax.objectives.reconstruction import patch_statistics, reconstruction_loss
from tests.helpers import oracle


@pytest.mark.parametrize("normalize", [True, False])
def test_loss_by_the_oracle(normalize):
    rng = np.random.default_rng(0)
    prediction, clean = rng.normal(size=(2, 3, 8, 12)).astype(np.float32)
    hidden = rng.permuted(np.tile([True] * 5 + [False] * 3, (3, 1)), axis=1)
    found = reconstruction_loss(
        jnp.asarray(prediction), jnp.asarray(clean), jnp.asarray(hidden), normalize
    )
    arrays = prediction.astype(float), clean.astype(float), hidden
    expected = oracle.reconstruction(*arrays, normalize)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_visible_patches_do_not_count():
    clean = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 6)), jnp.float32)
    hidden = jnp.array([[True, False]])
    prediction = jnp.zeros_like(clean)
    changed = prediction.at[0, 1].set(100.0)
    assert reconstruction_loss(prediction, clean, hidden) == reconstruction_loss(
        changed, clean, hidden
    )


def test_flat_patch_is_finite():
    mean, deviation = patch_statistics(jnp.full((1, 1, 6), 3.0))
    assert (float(mean[0, 0, 0]), float(deviation[0, 0, 0])) == pytest.approx((3.0, 1e-3))
