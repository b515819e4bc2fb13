import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from can_jax.models.backbones import SIZES, encoder_size
from can_jax.models.can import CAN, pool
from can_jax.models.masking import patchify
from can_jax.train.network import heads
from tests.helpers.configs import small_config

ALL = heads(small_config())


def count(size, patch_size):
    config = small_config(data__image_size=224, model__scan=True, model__patch_size=patch_size)
    config.model.update(size=size, width=SIZES[size].width, heads=SIZES[size].heads)
    config.model.depth = SIZES[size].depth
    network = nnx.eval_shape(lambda: CAN(config, {}, nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))


@pytest.mark.parametrize(
    ("size", "patch_size", "millions"),
    [("Ti", 16, 5.5), ("S", 16, 21.7), ("B", 16, 85.8), ("L", 16, 303.3), ("H", 14, 630.4)],
)
def test_encoder_sizes_are_the_published(size, patch_size, millions):
    assert count(size, patch_size) / 1e6 == pytest.approx(millions, abs=0.35)


@pytest.mark.parametrize("channels", [1, 3, 4, 8])
def test_non_square_images_of_any_channels(channels):
    config = small_config(data__image_size=(8, 20), augment__saturation=0.0, augment__hue=0.0,
        augment__grayscale=0.0, data__channels=channels, augment__mean=(0.0,) * channels,
        augment__std=(1.0,) * channels,
    )  # fmt: skip

    def shapes(images):
        model = CAN(config, ALL, nnx.Rngs(0))
        patches = patchify(images, 4)
        shuffle = jnp.broadcast_to(jnp.arange(10), (3, 10))
        outputs = model(patches[:, :5], shuffle, jnp.zeros(3), grid=(2, 5))
        return outputs.latent, outputs.prediction, model.encode(images)

    images = jax.ShapeDtypeStruct((3, 8, 20, channels), jnp.float32)
    found = [array.shape for array in jax.eval_shape(shapes, images)]
    assert found == [(3, 6, 24), (3, 10, 16 * channels), (3, 11, 24)]


@pytest.fixture(scope="module")
def network():
    """The structure of a small network, and its parameters."""
    make = jax.jit(lambda: nnx.state(CAN(small_config(), ALL, nnx.Rngs(0))))
    structure = nnx.eval_shape(lambda: CAN(small_config(), ALL, nnx.Rngs(0)))
    return nnx.graphdef(structure), make()


def test_encode_is_the_forward_pass_with_nothing_hidden(network):
    @jax.jit
    def compute(state, images):
        model = nnx.merge(network[0], state)
        shuffle = jnp.broadcast_to(jnp.arange(16), (2, 16))
        outputs = model(patchify(images, 4), shuffle, jnp.zeros(2), grid=(4, 4))
        return model.encode(images), outputs.latent

    encoded, latent = compute(network[1], jax.random.normal(jax.random.key(0), (2, 16, 16, 3)))
    np.testing.assert_allclose(encoded, latent, atol=1e-5)


def test_decoder_is_given_the_level_beside_the_latents(network):
    @jax.jit
    def compute(state, patches):
        model = nnx.merge(network[0], state)
        seen = []
        model.decoder = nnx.data(lambda latent, _, __, level: (seen.extend((latent, level)), None))
        shuffle = jnp.broadcast_to(jnp.arange(16), (2, 16))
        outputs = model(patches, shuffle, jnp.full(2, 0.03), grid=(4, 4))
        return seen, (outputs.latent, outputs.noise_level)

    seen, wanted = compute(network[1], jax.random.normal(jax.random.key(0), (2, 8, 48)))
    for found, array in zip(seen, wanted, strict=True):
        np.testing.assert_array_equal(found, array)
        assert np.ptp(array) > 0


def test_pools():
    latent = jnp.arange(12.0).reshape(1, 3, 4)
    np.testing.assert_array_equal(pool(latent, "class"), latent[:, 0])
    np.testing.assert_array_equal(pool(latent, "patches"), latent[:, 1:].mean(1))
    np.testing.assert_array_equal(pool(latent, "all"), latent.mean(1))


def test_single_measures_replace_those_of_the_size():
    size = encoder_size(small_config(model__size="L", model__depth=5).model)
    assert (size.width, size.depth, size.heads) == (24, 5, 3)
