import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from can_jax.models.heads import NoiseLevel, Projector, sincos_level
from tests.helpers import oracle

OPTIONS = {"dtype": jnp.float32, "param_dtype": jnp.float32}


@pytest.mark.parametrize(
    ("layers", "batch_norm", "final_norm"),
    [(3, True, False), (2, False, False), (1, False, False), (3, True, True), (1, False, True)],
)
def test_projector_in_numpy(layers, batch_norm, final_norm):
    projector = Projector(6, 10, 4, layers, batch_norm, final_norm, rngs=nnx.Rngs(0), **OPTIONS)
    x = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    found = projector(jnp.asarray(x), train=True)
    for i, layer in enumerate(projector.layers):
        x = x @ np.asarray(layer.kernel[...])
        if layer.bias is not None:
            x = x + np.asarray(layer.bias[...])
        if i < layers - 1:
            if batch_norm:
                x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
            x = np.maximum(x, 0)
    if final_norm:
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    np.testing.assert_allclose(found, x, atol=1e-4)


def test_batch_norm_keeps_running_statistics_for_evaluation():
    projector = Projector(6, 10, 4, 3, True, False, rngs=nnx.Rngs(0), **OPTIONS)
    train = nnx.jit(lambda projector, x: projector(x, train=True))
    evaluate = nnx.jit(lambda projector, x: projector(x, train=False))
    x = 3 + jax.random.normal(jax.random.key(0), (512, 6))
    before = evaluate(projector, x)
    for _ in range(60):
        trained = train(projector, x)
    after = evaluate(projector, x)
    assert float(jnp.abs(after - trained).max()) < 0.1 < float(jnp.abs(before - trained).max())


def test_layer_before_batch_norm_has_no_bias():
    projector = Projector(6, 10, 4, 3, True, False, rngs=nnx.Rngs(0), **OPTIONS)
    assert [layer.bias is not None for layer in projector.layers] == [False, False, True]
    projector = Projector(6, 10, 4, 3, True, True, rngs=nnx.Rngs(0), **OPTIONS)
    assert not any(layer.bias is not None for layer in projector.layers)
    assert projector.final_norm.bias is None and projector.final_norm.scale is not None


def test_scaled_level_reaches_the_embedding():
    sigma = jnp.linspace(0.0, 0.05, 32)
    spread = {
        scale: float(NoiseLevel(16, scale, rngs=nnx.Rngs(0), **OPTIONS)(sigma).std(0).max())
        for scale in (1.0, 1000 / 0.05)
    }
    assert spread[1000 / 0.05] > 10 * spread[1.0]


def test_level_follows_the_formula():
    level = np.array([0.0, 0.05, 700.0], np.float32)
    np.testing.assert_allclose(
        sincos_level(jnp.asarray(level), 12), oracle.sincos_level(level, 12), atol=1e-4
    )


def test_literal_level_is_nearly_constant_and_scaled_is_not():
    sigma = jnp.linspace(0, 0.05, 50)
    assert float(sincos_level(sigma, 64).std(0).max()) < 0.02
    assert float(sincos_level(sigma * 1000 / 0.05, 64).std(0).max()) > 0.5
