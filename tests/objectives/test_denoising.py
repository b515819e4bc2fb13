import jax.numpy as jnp
import numpy as np
import pytest

from can_jax.objectives.base import Arrays
from can_jax.objectives.denoising import denoising_loss, linear_bound, loss
from tests.helpers import oracle


def test_loss_by_the_oracle():
    rng = np.random.default_rng(0)
    prediction, noise = rng.normal(size=(2, 3, 8, 12)).astype(np.float32)
    hidden = rng.permuted(np.tile([True] * 5 + [False] * 3, (3, 1)), axis=1)
    found = denoising_loss(jnp.asarray(prediction), jnp.asarray(noise), jnp.asarray(hidden))
    expected = oracle.denoising(prediction.astype(float), noise.astype(float), hidden)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_energies_are_those_of_the_noise_in_the_input():
    rng = np.random.default_rng(0)
    prediction, unit = rng.normal(size=(2, 3, 8, 12)).astype(np.float32)
    hidden = rng.permuted(np.tile([True] * 5 + [False] * 3, (3, 1)), axis=1)
    sigma = rng.uniform(0, 0.2, 3).astype(np.float32)
    noise, predicted = (sigma[:, None, None].astype(float) * x for x in (unit, prediction))
    given = {"prediction": prediction, "noise": unit, "noise_scale": sigma, "hidden": hidden}
    value, found = loss(Arrays(**{name: jnp.asarray(array) for name, array in given.items()}))
    assert float(value) == pytest.approx(oracle.denoising(prediction, unit, hidden), rel=1e-5)
    expected = {"residual": predicted, "energy": np.zeros_like(noise)}
    for name, by in expected.items():
        wanted = oracle.denoising(by, noise, hidden)
        assert float(found[f"denoising/{name}"]) == pytest.approx(wanted, rel=1e-5)


def test_hidden_patches_do_not_count():
    noise = jnp.ones((1, 2, 6))
    loss = denoising_loss(noise.at[0, 0].set(50.0), noise, jnp.array([[True, False]]))
    assert float(loss) == 0


@pytest.mark.parametrize("sigma_max", [0.02, 0.3])
def test_linear_bound_is_what_a_least_squares_denoiser_reaches(sigma_max):
    variances = np.array([30.0, 1.0, 1e-2, 1e-4, 0.0])
    sigma = (np.arange(20000) + 0.5) / 20000 * sigma_max
    gain = sigma[:, None] ** 2 / (variances + sigma[:, None] ** 2)  # of the noise, by regression
    left = (1 - gain) ** 2 * sigma[:, None] ** 2 + gain**2 * variances
    share = 1 - left.mean() / (sigma**2).mean()
    assert linear_bound(variances, sigma_max) == pytest.approx(share, rel=1e-5)
    assert linear_bound(np.full(3, 1e9), sigma_max) == pytest.approx(0, abs=1e-9)
