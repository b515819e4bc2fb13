import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from can_jax.objectives import contrastive
from can_jax.objectives.contrastive import info_nce, sup_con
from tests import oracle


def embeddings(images, views, width, seed=0):
    return np.random.default_rng(seed).normal(size=(images, views, width)).astype(np.float32)


def by_view(z):
    return z.transpose(1, 0, 2).reshape(-1, z.shape[-1])


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 6), st.integers(2, 9), st.sampled_from([0.05, 0.1, 0.5, 1.0]))
def test_info_nce_by_the_oracle(images, width, temperature):
    z = embeddings(images, 2, width)
    expected = oracle.info_nce(by_view(z).astype(float), temperature)
    assert float(info_nce(jnp.asarray(z), temperature)) == pytest.approx(
        expected, rel=1e-4, abs=1e-5
    )


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=6))
def test_sup_con_by_the_oracle(labels):
    z = embeddings(len(labels), 2, 5)
    expected = oracle.sup_con(by_view(z).astype(float), np.tile(labels, 2), 0.1)
    found = float(sup_con(jnp.asarray(z), jnp.array(labels), 0.1))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_without_labels_sup_con_is_info_nce():
    z = jnp.asarray(embeddings(5, 2, 7))
    for labels in (jnp.full(5, -1), jnp.arange(5)):
        assert float(sup_con(z, labels, 0.1)) == pytest.approx(float(info_nce(z, 0.1)), rel=1e-6)


def test_perfect_agreement_and_collapse():
    apart = jnp.repeat(jnp.eye(4)[:, None], 2, axis=1)
    assert float(info_nce(apart, 0.01)) < 1e-6
    together = jnp.ones((4, 2, 3))
    assert float(info_nce(together, 0.1)) == pytest.approx(np.log(7), rel=1e-5)


def test_negatives_are_those_of_the_global_batch():
    z = embeddings(8, 2, 6)
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    placed = jax.device_put(z, NamedSharding(mesh, PartitionSpec("data")))
    value, gradient = jax.jit(jax.value_and_grad(lambda z: info_nce(z, 0.1)))(placed)
    expected, expected_gradient = jax.value_and_grad(lambda z: info_nce(z, 0.1))(jnp.asarray(z))
    local = np.mean([info_nce(jnp.asarray(z[i : i + 4]), 0.1) for i in (0, 4)])
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)
    assert abs(local - float(expected)) > 0.1  # what negatives of one device would have given


def test_bfloat16_embeddings_give_a_float32_loss():
    z = jnp.asarray(embeddings(4, 2, 8), jnp.bfloat16)
    loss = info_nce(z, 0.1)
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(float(info_nce(z.astype(jnp.float32), 0.1)), rel=1e-6)


def test_zero_embedding_has_a_finite_gradient():
    gradient = jax.grad(lambda z: info_nce(z, 0.1))(jnp.zeros((3, 2, 4)))
    assert bool(jnp.isfinite(gradient).all())


def test_top1_counts_nearest_rows_of_the_same_image():
    z = jnp.array([[[1.0, 0.0], [1.0, 0.1]], [[0.0, 1.0], [0.9, -0.1]]])
    arrays = contrastive.Arrays(z, None, None, None, None, None)
    _, metrics = contrastive.loss(arrays, temperature=0.1, supervised=False)
    assert float(metrics["contrastive/top1"]) == 0.5
