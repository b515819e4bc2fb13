import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from can_jax.distributed.mesh import make_mesh
from can_jax.objectives import contrastive, rows
from can_jax.objectives.base import Arrays
from tests.helpers import oracle
from tests.helpers.configs import small_config

BLOCKS = (None, 1, 3, 5)


def embeddings(images, views, width, seed=0):
    return np.random.default_rng(seed).normal(size=(images, views, width)).astype(np.float32)


def by_view(z):
    return z.transpose(1, 0, 2).reshape(-1, z.shape[-1])


def whole(z, labels=None, temperature=0.1, block=None, directions="mean"):
    """The loss and its metrics."""
    arrays = Arrays(pooled=z, labels=labels)
    settings = {"directions": directions, "supervised": labels is not None, "block": block}
    return contrastive.loss(arrays, lambda rows, train: rows, temperature, **settings)


@functools.cache
def program(**options):
    """The loss and its metrics, and the gradient of the loss, as one program."""
    return jax.jit(jax.value_and_grad(functools.partial(whole, **options), has_aux=True))


def info_nce(z, temperature, block=None):
    return program(temperature=temperature, block=block)(z)[0][0]


def sup_con(z, labels, temperature, block=None):
    return program(temperature=temperature, block=block)(z, labels)[0][0]


@jax.jit
@jax.value_and_grad
def written_out(z, labels, temperature):
    """The loss as the paper writes it, for the compiler to differentiate."""
    images, views, width = z.shape
    unit = rows.normalize(z).reshape(-1, width)
    image, itself = jnp.arange(images * views) // views, jnp.eye(images * views, dtype=bool)
    label = jnp.repeat(labels, views)
    alike = (image[:, None] == image) | ((label[:, None] == label) & (label >= 0))
    logits = jnp.where(itself, -jnp.inf, unit @ unit.T / temperature)
    logs = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
    positive = alike & ~itself
    return -jnp.mean(jnp.sum(logs, axis=1, where=positive) / positive.sum(axis=1))


@pytest.mark.parametrize(
    ("images", "width", "temperature", "block"),
    [(2, 2, 0.05, None), (6, 4, 0.1, 5), (3, 9, 0.5, 4), (5, 3, 1.0, 1)],
)
def test_info_nce_by_the_oracle(images, width, temperature, block):
    z = embeddings(images, 2, width)
    expected = oracle.info_nce(by_view(z).astype(float), temperature)
    assert float(info_nce(jnp.asarray(z), temperature, block)) == pytest.approx(
        expected, rel=1e-4, abs=1e-5
    )


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 2), min_size=5, max_size=5), st.sampled_from(BLOCKS))
def test_sup_con_by_the_oracle(labels, block):
    z = embeddings(5, 2, 4)
    expected = oracle.sup_con(by_view(z).astype(float), np.tile(labels, 2), 0.2)
    found = float(sup_con(jnp.asarray(z), jnp.array(labels), 0.2, block))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("views", "block"), [*((2, block) for block in BLOCKS), (3, None), (3, 4)])
@pytest.mark.parametrize("labels", [[-1] * 5, [0, 1, 0, -1, -1], [0] * 5])
def test_gradient_is_that_of_the_loss_written_out(labels, views, block):
    z, labels = jnp.asarray(embeddings(5, views, 4)), jnp.array(labels)
    expected, gradient = written_out(z, labels, 0.2)
    (found, _), own = program(temperature=0.2, block=block)(z, labels)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(own, gradient, rtol=1e-5, atol=1e-6)


def test_gradient_of_a_multiple_of_the_loss_is_that_multiple():
    z = jnp.asarray(embeddings(5, 2, 4))
    tripled = jax.jit(jax.grad(lambda z: 3 * whole(z)[0]))
    np.testing.assert_allclose(tripled(z), 3 * program()(z)[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_blocks_change_nothing(block):
    z = jnp.asarray(embeddings(8, 2, 6))
    (value, metrics), gradient = program()(z)
    (blocked, others), own = program(block=block)(z)
    assert float(blocked) == pytest.approx(float(value), rel=1e-6)
    np.testing.assert_allclose(own, gradient, rtol=1e-5, atol=1e-7)
    assert metrics.keys() == others.keys() and metrics
    for name in metrics:
        assert float(others[name]) == pytest.approx(float(metrics[name]), rel=1e-5), name


def test_block_follows_from_what_a_device_may_hold():
    assert rows.block_size(8192, shards=1) == 4096
    assert rows.block_size(8192, shards=8) == 8192
    assert rows.block_size(131072, shards=256) * 131072 // 256 <= 2**25
    assert rows.block_size(2**40, shards=1) == 1


def largest_array(images, shards):
    """Entries of the largest array that a device would hold in the loss and its gradient."""
    mesh = make_mesh(small_config(mesh__data=8).mesh)
    block = rows.block_size(2 * images, shards)
    z = jax.ShapeDtypeStruct((images, 2, 16), jnp.float32)

    with jax.set_mesh(mesh):
        text = str(jax.make_jaxpr(jax.value_and_grad(lambda z: whole(z, block=block)[0]))(z))
    shapes = re.findall(r"\w+\[(\d+(?:,\d+)*)\]", text)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes) // shards


def test_memory_grows_with_the_batch_and_not_with_its_square():
    assert largest_array(4096, shards=256) == 8192 * 8192 // 256  # in one piece
    for images in (65536, 262144):
        assert largest_array(images, shards=256) <= rows.BLOCK_ENTRIES


def test_without_labels_sup_con_is_info_nce():
    z = jnp.asarray(embeddings(5, 2, 4))
    for labels in (jnp.full(5, -1), jnp.arange(5)):
        assert float(sup_con(z, labels, 0.2)) == pytest.approx(float(info_nce(z, 0.2)), rel=1e-6)


def test_perfect_agreement_and_collapse():
    apart = jnp.repeat(jnp.eye(4)[:, None], 2, axis=1)
    assert float(info_nce(apart, 0.01)) < 1e-6
    together = jnp.ones((4, 2, 3))
    assert float(info_nce(together, 0.1)) == pytest.approx(np.log(7), rel=1e-5)


@pytest.mark.parametrize("block", [None, 4])
def test_negatives_are_those_of_the_global_batch(block):
    z = embeddings(8, 2, 6)
    mesh = make_mesh(small_config(mesh__data=8).mesh)
    placed = jax.device_put(z, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    with jax.set_mesh(mesh):
        compute = jax.jit(jax.value_and_grad(functools.partial(whole, block=block), has_aux=True))
        (value, _), gradient = compute(placed)
    (expected, _), expected_gradient = program()(jnp.asarray(z))
    local = np.mean([info_nce(jnp.asarray(z[i : i + 4]), 0.1) for i in (0, 4)])
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)
    assert abs(local - float(expected)) > 0.1  # what negatives of one device would have given


def test_bfloat16_embeddings_give_a_float32_loss():
    z = jnp.asarray(embeddings(4, 2, 8), jnp.bfloat16)
    loss = info_nce(z, 0.1)
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(float(info_nce(z.astype(jnp.float32), 0.1)), rel=1e-6)


@pytest.mark.parametrize("short", [0.0, 1e-13])
def test_zero_row_has_no_gradient_and_leaves_that_of_the_others(short):
    z = jnp.asarray(embeddings(3, 2, 4)).at[1, 0].set(short)
    gradient = program()(z)[1]
    assert not gradient[1, 0].any()
    assert 0.01 < float(jnp.abs(gradient).max()) < 10
    assert not program()(jnp.full((3, 2, 4), short))[1].any()


def test_sum_of_directions_is_that_of_the_original():
    """As google-research/simclr: the cross entropies of either view are added."""
    z = embeddings(4, 2, 8)
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    total = 0.0
    for a, b in ((unit[:, 0], unit[:, 1]), (unit[:, 1], unit[:, 0])):
        logits = np.concatenate([a @ b.T, a @ a.T - 1e9 * np.eye(4)], axis=1) / 0.1
        total += np.mean(np.log(np.exp(logits).sum(axis=1)) - np.diag(logits))
    assert float(program(directions="sum")(jnp.asarray(z))[0][0]) == pytest.approx(total, rel=1e-5)


def test_what_is_logged_beside_the_loss():
    z = jnp.array([[[1.0, 0.0], [0.8, 0.6]], [[0.0, 1.0], [0.0, -1.0]]])
    (_, metrics), _ = program()(z)
    # The first two rows are nearest to each other, the other two to rows of the other image.
    assert float(metrics["contrastive/top1"]) == 0.5
    assert float(metrics["contrastive/positive_similarity"]) == pytest.approx((0.8 - 1.0) / 2)
    assert float(metrics["contrastive/negative_similarity"]) == pytest.approx(0.0, abs=1e-6)
