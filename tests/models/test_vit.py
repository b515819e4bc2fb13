import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from can_jax.models import ops, vit
from can_jax.models.encoder import Encoder
from can_jax.models.ops import attend, gelu, matrix_product
from can_jax.models.vit import (
    REMAT_POLICIES,
    Blocks,
)


def make_blocks(**options):
    options = {"scan": False, "remat": "none", "dtype": jnp.float32} | options
    options = {"residual_dtype": options["dtype"]} | options
    return Blocks(3, 8, 2, 16, param_dtype=jnp.float32, rngs=nnx.Rngs(0), **options)


@pytest.fixture(scope="module")
def parameters():
    """The parameters of the blocks: the same however they are run."""
    return jax.jit(lambda: nnx.state(make_blocks()))()


def value_and_gradient(parameters, **options):
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))
    graph = nnx.graphdef(nnx.eval_shape(lambda: make_blocks(**options)))
    loss = jax.jit(jax.value_and_grad(lambda p: jnp.sum(nnx.merge(graph, p)(x) ** 2)))
    return loss(parameters)


@pytest.fixture(scope="module")
def expected(parameters):
    """What the plain blocks compute."""
    return value_and_gradient(parameters)


@pytest.mark.parametrize(
    ("scan", "remat"),
    [
        *((True, remat) for remat in REMAT_POLICIES),
        *(pytest.param(False, r, marks=pytest.mark.slow) for r in REMAT_POLICIES if r != "none"),
    ],
)
def test_every_way_to_run_the_blocks_gives_the_same(parameters, expected, scan, remat):
    value, gradient = value_and_gradient(parameters, scan=scan, remat=remat)
    assert float(value) == pytest.approx(float(expected[0]), rel=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        assert np.ptp(b) > 0


@pytest.mark.parametrize(("platform", "kernel"), [("gpu", "xla"), ("gpu", "cudnn"), ("tpu", "xla")])
def test_forms_for_accelerators_compute_the_same(
    parameters, expected, platform, kernel, monkeypatch
):
    for module in (ops, vit):
        monkeypatch.setattr(module, "platform", lambda: platform)
        monkeypatch.setattr(module, "attention_kernel", lambda *_: kernel)
    attention = jax.nn.dot_product_attention

    def without_gpu(query, *arrays, implementation, **lengths):
        assert implementation == "cudnn" and query.shape[1] % 2 == 0  # as cuDNN demands
        return attention(query, *arrays, **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", without_gpu)
    monkeypatch.setattr(ops, "TPU_LOGITS_BYTES", 1)  # Attend to each head by itself.
    value, gradient = value_and_gradient(parameters, scan="auto")
    assert float(value) == pytest.approx(float(expected[0]), rel=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_heads_are_divided_until_their_logits_fit():
    shape = (32, 16, 197, 32)  # The logits take 32 * 16 * 200 * 256 * 4 bytes = 105 MB.
    assert ops._parts(jnp.zeros(shape, jnp.bfloat16), jnp.zeros(shape, jnp.bfloat16)) == 4
    assert ops._parts(jnp.zeros((1, 4, 9, 8)), jnp.zeros((1, 4, 9, 8))) == 1


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_blocks_are_exported_for_any_number_of_rows(platform, monkeypatch):
    for module in (ops, vit):
        monkeypatch.setattr(module, "platform", lambda: platform)
    (rows,) = export.symbolic_shape("rows")
    graph, state = nnx.split(nnx.eval_shape(make_blocks))
    exported = export.export(jax.jit(lambda state, x: nnx.merge(graph, state)(x)))
    out = exported(state, jax.ShapeDtypeStruct((rows, 5, 8), jnp.float32)).out_avals[0]
    assert out.shape[0] == rows


def test_blocks_can_be_vectorized_with_their_gradients(parameters):
    graph = nnx.graphdef(nnx.eval_shape(make_blocks))
    x = jax.random.normal(jax.random.key(1), (3, 2, 5, 8))
    gradient = jax.grad(lambda x: jnp.sum(nnx.merge(graph, parameters)(x) ** 2))
    several = jax.jit(jax.vmap(gradient))(x)
    np.testing.assert_allclose(several[1], jax.jit(gradient)(x[1]), rtol=1e-4, atol=1e-5)


def test_operations_of_the_network_can_be_batched():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3)))

    def slope(x):
        return jax.grad(lambda x: gelu(matrix_product(x, x.T)).sum())(x)

    np.testing.assert_allclose(jax.vmap(slope)(x)[1], slope(x[1]), rtol=1e-5)


def test_forward_mode_agrees_with_reverse_mode(parameters):
    graph = nnx.graphdef(nnx.eval_shape(make_blocks))
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))

    def loss(parameters, x):
        return jnp.sum(nnx.merge(graph, parameters)(x) ** 2)

    keys = iter(jax.random.split(jax.random.key(2), 99))
    direction = jax.tree.map(lambda a: jax.random.normal(next(keys), a.shape), (parameters, x))
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(parameters, x)
    _, slope = jax.jit(lambda d: jax.jvp(loss, (parameters, x), d))(direction)
    products = jax.tree.map(jnp.vdot, gradient, direction)
    assert float(slope) == pytest.approx(float(sum(jax.tree.leaves(products))), rel=1e-4)


@pytest.mark.parametrize("offset", [0, 10, 100])
def test_layer_norm_in_one_pass_is_exact_but_for_the_rounding_of_its_output(offset):
    rng = np.random.default_rng(0)
    x = jnp.asarray(offset + rng.normal(0, 1, (64, 1024)), jnp.bfloat16)
    norm = vit.layer_norm(1024, dtype=jnp.bfloat16, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    wide = np.asarray(x, np.float64)
    exact = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    error = np.abs(np.asarray(norm(x), np.float64) - exact)
    assert (error <= 2**-8 * np.abs(exact) + offset**2 * 2**-23).all()
    assert norm.use_fast_variance and not make_blocks().layers.mlp_norm.use_fast_variance


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)])
def test_gelu_is_the_exact_one_and_keeps_its_input_only(dtype, error):
    x = jnp.linspace(-5, 5, 1001).astype(dtype)
    points = np.asarray(x, np.float64)
    cdf = np.array([0.5 * math.erfc(-point / math.sqrt(2)) for point in points])
    density = np.exp(-0.5 * points**2) / math.sqrt(2 * math.pi)
    value, backward = jax.vjp(gelu, x)
    (slope,) = backward(jnp.ones_like(x))
    assert value.dtype == slope.dtype == dtype
    for found, exact in ((value, points * cdf), (slope, cdf + points * density)):
        assert (np.abs(np.asarray(found, np.float64) - exact) <= error * (1 + abs(exact))).all()
    kept = jax.tree.leaves(backward)
    assert [(a.shape, a.dtype) for a in kept] == [(x.shape, dtype)]


def test_scan_compiles_one_block_and_remat_computes_again():
    def text(**options):
        graph, parameters = nnx.split(nnx.eval_shape(lambda: make_blocks(**options)))
        x = jnp.ones((2, 5, 8))
        loss = jax.jit(jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(x))))
        return loss.lower(parameters).as_text()

    assert "stablehlo.while" in text(scan=True) and "stablehlo.while" not in text(scan=False)
    counts = {r: text(scan=True, remat=r).count("dot_general") for r in ("none", "dots", "full")}
    assert counts["dots"] == counts["none"] + 1  # of attention's logits; no linear layer's
    assert counts["none"] < counts["full"]


@pytest.mark.parametrize("outputs", [3, 6, 9])
def test_gradients_of_a_product_of_any_shape(outputs):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((5, 6), (6, outputs), (5, outputs))
    x, kernel, gradient = map(jax.random.normal, keys, shapes)
    value, backward = jax.vjp(matrix_product, x, kernel)
    of_x, of_kernel = backward(gradient)
    for found, exact in (
        (value, x @ kernel),
        (of_x, gradient @ kernel.T),
        (of_kernel, x.T @ gradient),
    ):
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


def test_attention_is_softmax_of_scaled_products():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 5, 2, 4))
    scores = np.einsum("rqhw,rkhw->rhqk", q, k) / 2
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("rhqk,rkhw->rqhw", weights, v)
    found = attend(*(jnp.asarray(array, jnp.float32) for array in (q, k, v)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_residual_stream_in_float32_is_nearer_to_float32_throughout():
    x = jax.random.normal(jax.random.key(1), (4, 9, 32))
    half = jnp.bfloat16

    def output(dtype, residual_dtype):
        options = {"scan": True, "remat": "none", "param_dtype": jnp.float32}
        options |= {"dtype": dtype, "residual_dtype": residual_dtype}

        @jax.jit
        def run():
            blocks = Blocks(16, 32, 4, 64, rngs=nnx.Rngs(0), **options)
            return blocks(x.astype(residual_dtype))

        return run()

    exact, wide, narrow = (
        output(*dtypes) for dtypes in ((jnp.float32,) * 2, (half, jnp.float32), (half, half))
    )
    assert (wide.dtype, narrow.dtype) == (jnp.float32, half)
    errors = [float(jnp.linalg.norm(y.astype(jnp.float32) - exact)) for y in (wide, narrow)]
    assert 0 < errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("scan", [False, True])
def test_residual_stream_narrower_than_the_computation_keeps_its_type(scan):
    def run():
        blocks = make_blocks(scan=scan, residual_dtype=jnp.bfloat16)
        return blocks(jnp.ones((2, 5, 8), jnp.bfloat16))

    assert jax.eval_shape(run).dtype == jnp.bfloat16


def test_encoder_sees_places_and_not_the_order_in_which_they_come():
    options = {"scan": False, "remat": "none", "dtype": jnp.float32}
    options |= {"residual_dtype": jnp.float32, "param_dtype": jnp.float32}

    @jax.jit
    def encoder(patches, index):
        return Encoder(12, 8, 2, 2, 16, rngs=nnx.Rngs(0), **options)(patches, index, (2, 3))

    patches = jax.random.normal(jax.random.key(0), (1, 4, 12))
    index = jnp.array([[5, 0, 3, 1]])
    tokens = encoder(patches, index)
    turned = encoder(patches[:, ::-1], index[:, ::-1])
    np.testing.assert_allclose(tokens[:, 1:], turned[:, :0:-1], atol=1e-5)
    np.testing.assert_allclose(tokens[:, 0], turned[:, 0], atol=1e-5)
    moved = encoder(patches, index.at[0, 0].set(4))
    assert float(jnp.abs(moved - tokens).max()) > 1e-3
