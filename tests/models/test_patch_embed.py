import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from can_jax.models import patch_embed
from can_jax.utils.errors import UserError
from tests.helpers import oracle
from tests.helpers.configs import small_config


def patches(pixels=12, count=500):
    """Patches whose covariance has a condition number of about a million."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(pixels, pixels)) * np.logspace(0.5, -2.5, pixels)
    return rng.normal(size=(count, pixels)) @ mixed.T + 0.3


def moments(rows):
    return rows.mean(0), np.cov(rows.T, bias=True)


def test_whitening_by_the_oracle():
    rows = patches()
    mean, root = oracle.whitening(rows, 1e-3)
    found = patch_embed.whitening(*moments(rows), 1e-3)
    np.testing.assert_allclose(found.mean, mean, atol=1e-12)
    np.testing.assert_allclose(found.map, root, rtol=1e-10, atol=1e-10)
    rng = np.random.default_rng(1)
    noisy = np.tile(rows, (400, 1))
    noisy += 1e-3**0.5 * rng.normal(size=noisy.shape)
    np.testing.assert_allclose(np.cov(((noisy - found.mean) @ found.map).T), np.eye(12), atol=0.02)


@pytest.mark.parametrize(("size", "channels"), [(4, 3), (2, 1)])
def test_dct_scaling_by_the_oracle(size, channels):
    found = patch_embed.dct_scaling(size, channels, 1e-3)
    assert not found.mean.any()
    wanted = oracle.dct_scaling(size, channels, 1e-3)
    np.testing.assert_allclose(found.map, wanted, rtol=1e-10, atol=1e-10)


def test_floor_is_the_noise_but_not_below_that_of_rounding():
    assert patch_embed.noise_floor(0.3) == pytest.approx(0.03)
    assert patch_embed.noise_floor(0.0) == patch_embed.FLOOR


def test_embedding_of_mapped_patches_and_its_folded_form():
    rows = patches().astype(np.float32)
    options = {"rngs": nnx.Rngs(0), "dtype": jnp.float32, "param_dtype": jnp.float32}
    fixed = patch_embed.whitening(*moments(rows), 1e-3)
    layer = patch_embed.PatchEmbed(12, 8, start=fixed, **options)
    layer.bias[...] = jnp.arange(8.0)
    found = np.asarray(layer(jnp.asarray(rows[None])))[0]
    kernel, bias = (np.asarray(p[...], float) for p in (layer.kernel, layer.bias))
    wanted = (rows - fixed.mean) @ fixed.map @ kernel + bias
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())

    stored = {"map_mean": layer.map_mean[...], "map": layer.map[...]}
    statistics = {"encoder": {"patch_embed": stored}, "projector": {}}
    encoder = {"patch_embed": {"kernel": layer.kernel[...], "bias": layer.bias[...]}, "norm": {}}
    folded, rest = patch_embed.fold({"encoder": encoder}, statistics)
    plain = folded["encoder"]["patch_embed"]
    assert set(rest) == {"projector"} and set(folded["encoder"]) == {"patch_embed", "norm"}
    by_folded = rows.astype(float) @ plain["kernel"] + plain["bias"]
    np.testing.assert_allclose(by_folded, wanted, atol=2e-5 * np.abs(wanted).max())
    map_of = patch_embed.fixed_map(statistics)
    for array, own in zip(
        patch_embed.unfold(plain["kernel"], plain["bias"], map_of), (kernel, bias), strict=True
    ):
        np.testing.assert_allclose(array, own, atol=1e-4)


def test_linear_embedding_has_nothing_to_fold():
    tree, statistics = {"encoder": {"patch_embed": {}}}, {"projector": {}}
    assert patch_embed.fold(tree, statistics) == (tree, statistics)


def test_other_backbones_have_no_map():
    from can_jax.models.backbones import BACKBONES, BackboneType

    other = BackboneType(lambda *_: None, lambda *_: 0)
    with (
        BACKBONES.temporarily("other", other),
        pytest.raises(UserError, match="supports only 'linear'"),
    ):
        small_config(model__backbone="other", model__patch_embed="dct")
