import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from can_jax.models.decoder import Decoder


def make(**changes):
    options = {"scan": False, "remat": "none", "dtype": jnp.float32, "param_dtype": jnp.float32}
    options |= {"level_tokens": "all", "residual_dtype": jnp.float32}
    return Decoder(8, 12, 16, 1, 2, 32, rngs=nnx.Rngs(0), **options | changes)


@jax.jit
def predict(latent, shuffle):
    return make()(latent, shuffle, (2, 3)).prediction


def test_one_prediction_a_patch_whatever_the_order_of_the_visible():
    latent = jax.random.normal(jax.random.key(0), (1, 3, 8))
    one = predict(latent, jnp.array([[4, 1, 0, 2, 3, 5]]))
    other = predict(latent[:, jnp.array([0, 2, 1])], jnp.array([[1, 4, 5, 3, 2, 0]]))
    assert one.shape == (1, 6, 12)
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_hidden_patches_are_told_apart_by_their_place_alone():
    prediction = predict(jnp.zeros((1, 3, 8)), jnp.array([[4, 1, 0, 2, 3, 5]]))
    assert len(np.unique(np.asarray(prediction[0]).round(5), axis=0)) == 6


def test_noise_of_visible_patches_has_an_output_of_its_own_that_starts_at_zero():
    latent = jax.random.normal(jax.random.key(0), (1, 3, 8))
    given = (latent, jnp.array([[4, 1, 0, 2, 3, 5]]), (2, 3))
    shared, own = (make(noise_output=own)(*given).prediction for own in (False, True))
    visible = np.isin(np.arange(6), (4, 1))
    assert not own[0, visible].any() and np.abs(own[0, ~visible]).min() > 0
    np.testing.assert_array_equal(own[0, ~visible], shared[0, ~visible])  # and no other start
    both = make(noise_output=True, zero_output=True)
    assert not both(*given).prediction.any()
    both.predict_noise.bias[...] = jnp.ones(12)
    np.testing.assert_array_equal(both(*given).prediction[0, :, 0], visible)


@pytest.mark.parametrize(("tokens", "reached"), [("all", 6), ("visible", 2)])
def test_level_reaches_the_tokens_that_are_named(tokens, reached):
    decoder = make(level_tokens=tokens)
    latent = jax.random.normal(jax.random.key(0), (1, 3, 8))
    seen = []

    def record(x):
        seen.append(x)
        return x

    decoder.blocks = record  # all that comes after the tokens are put together
    for level in (None, jnp.ones((1, 8))):
        decoder(latent, jnp.array([[4, 1, 0, 2, 3, 5]]), (2, 3), level)
    changed = np.asarray(jnp.abs(seen[1] - seen[0]).max(axis=-1) > 1e-6)[0]
    assert not changed[0] and changed[1:].sum() == reached
    assert changed[1:][[4, 1]].all()
    moved = (seen[1] - seen[0])[0, 1:][changed[1:]]
    np.testing.assert_allclose(
        moved, jnp.broadcast_to(jnp.ones(8) @ decoder.embed.kernel[...], moved.shape), atol=1e-5
    )
