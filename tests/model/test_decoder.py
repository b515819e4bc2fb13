import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from can_jax.model.decoder import Decoder


def make(**changes):
    options = {"scan": False, "remat": "none", "dtype": jnp.float32, "param_dtype": jnp.float32}
    return Decoder(8, 12, 16, 1, 2, 32, rngs=nnx.Rngs(0), **options | changes)


def test_one_prediction_a_patch_whatever_the_order_of_the_visible():
    decoder = make()
    latent = jax.random.normal(jax.random.key(0), (1, 3, 8))
    one = decoder(latent, jnp.array([[4, 1, 0, 2, 3, 5]]), (2, 3))
    other = decoder(latent[:, jnp.array([0, 2, 1])], jnp.array([[1, 4, 5, 3, 2, 0]]), (2, 3))
    assert one.shape == (1, 6, 12)
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_hidden_patches_are_told_apart_by_their_place_alone():
    decoder = make()
    prediction = decoder(jnp.zeros((1, 3, 8)), jnp.array([[4, 1, 0, 2, 3, 5]]), (2, 3))
    assert len(np.unique(np.asarray(prediction[0]).round(5), axis=0)) == 6
