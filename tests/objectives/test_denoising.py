import jax.numpy as jnp
import numpy as np
import pytest

from can_jax.objectives.denoising import denoising_loss
from tests.helpers import oracle


def test_loss_by_the_oracle():
    rng = np.random.default_rng(0)
    prediction, noise = rng.normal(size=(2, 3, 8, 12)).astype(np.float32)
    hidden = rng.permuted(np.tile([True] * 5 + [False] * 3, (3, 1)), axis=1)
    found = denoising_loss(jnp.asarray(prediction), jnp.asarray(noise), jnp.asarray(hidden))
    expected = oracle.denoising(prediction.astype(float), noise.astype(float), hidden)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_hidden_patches_do_not_count():
    noise = jnp.ones((1, 2, 6))
    loss = denoising_loss(noise.at[0, 0].set(50.0), noise, jnp.array([[True, False]]))
    assert float(loss) == 0
