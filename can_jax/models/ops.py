"""Operations with custom derivatives or platform-specific implementations, for speed.

All operations except cuDNN attention support forward-mode differentiation (`jax.jvp`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from can_jax.distributed.mesh import axis_size, device_kind, platform, row_shards

Heads = Float[Array, "rows heads tokens width"]

ATTENTION = ("auto", "xla", "cudnn")

CUDNN_HEAD_WIDTH = 128  # the largest number of features of a head in cuDNN's fused attention

# Names of NVIDIA GPUs without bfloat16 units, for which cuDNN has no fused attention.
BEFORE_AMPERE = ("V100", "T4", "P100", "P40", "GTX", "TITAN", "Quadro", "RTX 20")

# The logits of one product on a TPU should stay in the 128 MiB of a core's vector memory, next to
# the probabilities and the operands. The compiler estimates that this limit makes the softmax of
# the ViT-L decoder four times as fast.
TPU_LOGITS_BYTES = 32 * 2**20


@jax.custom_jvp
def matrix_product(
    x: Float[Array, "rows inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "rows outputs"]:
    """Return ``x @ kernel``; on CPUs, the gradient with respect to the kernel is computed faster.

    The gradient with respect to the kernel is ``x.T @ gradient``, where ``gradient`` is the
    gradient with respect to the output. XLA's CPU backend computes a product with a transposed left
    matrix by a slower routine. Therefore the backward pass first transposes ``x`` or ``gradient``,
    whichever is narrower. An optimization barrier keeps XLA from merging the transpose into the
    product.
    """
    return x @ kernel


@matrix_product.defjvp
def _product_tangent(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    return x @ kernel, dx @ kernel + _times_kernel_tangent(x, dkernel)


# Because of the rematerialization, ``x`` is saved for the backward pass, not ``barrier(x.T)``.
@jax.checkpoint
def _times_kernel_tangent(x: Array, dkernel: Array) -> Array:
    """Return ``x @ dkernel``, written so that the backward pass first transposes ``x`` or the
    gradient of the output, whichever is narrower."""
    barrier = jax.lax.optimization_barrier
    if x.shape[1] <= dkernel.shape[1]:  # The transpose is barrier(x.T) @ gradient.
        return jax.lax.dot_general(barrier(x.T), dkernel, (((0,), (0,)), ((), ())))
    # The transpose is barrier(barrier(gradient.T) @ x).T.
    by_columns = jax.lax.dot_general(barrier(dkernel.T), x, (((1,), (1,)), ((), ())))
    return barrier(by_columns).T


def linear_product(x: Array, kernel: Array) -> Array:
    """Return ``x @ kernel``, the product along the last axis of ``x``, in the fastest form for the
    platform.

    On CPUs, all leading axes of ``x`` are merged into one, which makes the backward pass up to
    twice as fast. On TPUs, the leading axes are not merged, since merging the axes of a shape such
    as (32, 99, width) would copy ``x``. On GPUs, `unfused` keeps XLA from fusing later additions
    into the product.
    """
    if platform() != "cpu":
        return unfused(jnp.matmul(x, kernel))
    return matrix_product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)


@jax.custom_jvp
def unfused(product: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return a matrix product unchanged; on GPUs, an optimization barrier keeps XLA from fusing
    later additions into the product.

    Without the barrier, cuBLAS adds the bias or the residual stream to the product. Before an
    addition by cuBLAS, XLA copies the residual stream and the weights of the layer. With the
    barrier, the addition is fused into the next operation, such as a LayerNorm. In a training step
    of ViT-L with 64 images, the barrier saves 7 GB of memory traffic and 160 kernel launches. The
    barrier is in the forward pass only, since XLA copies neither the residual stream nor the
    weights in the backward pass.
    """
    return jax.lax.optimization_barrier(product) if platform() == "gpu" else product


@unfused.defjvp
def _unfused_tangent(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return unfused(*primals), tangents[0]


@jax.custom_jvp
def gelu(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return the exact GELU, ``x · Φ(x)``, which is computed in float32 or wider.

    Φ is `normal_cdf`, which uses erf; erf evaluates one polynomial. `jax.nn.gelu` uses erfc, which
    evaluates two polynomials. Only ``x`` is saved for the backward pass.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * normal_cdf(wide)).astype(x.dtype)


def normal_cdf(x: Array) -> Array:
    """Return Φ(x), the cumulative distribution function of the standard normal distribution."""
    return 0.5 * (1 + jax.lax.erf(x * 2**-0.5))


@gelu.defjvp
def _gelu_tangent(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return gelu(x), _times_gelu_slope(x, dx)


# Because of the rematerialization, only ``x`` is saved for the backward pass. ``prevent_cse=True``
# would insert a barrier, which would keep XLA from fusing this function into adjacent products.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _times_gelu_slope(x: Array, tangent: Array) -> Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    density = jnp.exp(-0.5 * wide**2) * (2 * jnp.pi) ** -0.5
    return (tangent * (normal_cdf(wide) + wide * density)).astype(x.dtype)


def quick_gelu(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return QuickGELU, ``x · sigmoid(1.702 x)`` (arXiv 1606.08415), as in OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "exact": gelu,
    "tanh": jax.nn.gelu,
    "quick": quick_gelu,
}


@jax.custom_jvp
def attention_logits(
    query: Float[Array, "rows tokens heads width"], key: Float[Array, "rows tokens heads width"]
) -> Float[Array, "rows heads tokens tokens"]:
    """Return the inner products of all queries and keys, in float32, or in float64 for float64
    inputs.

    In the backward pass, the gradient is cast to the dtype of the queries before it is multiplied
    by queries or keys. JAX's default backward pass would multiply in float32, which is several
    times slower on CPUs and GPUs.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    return jnp.einsum("rqhw,rkhw->rhqk", query, key, preferred_element_type=wide)


@attention_logits.defjvp
def _logits_tangent(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (query, key), (dquery, dkey) = primals, tangents
    logits = attention_logits(query, key)
    # These products have the dtype of the queries, so their transposes, which are the backward
    # pass, first cast the gradient of the logits to this dtype.
    by_query = jnp.einsum("rqhw,rkhw->rhqk", dquery, key).astype(logits.dtype)
    by_key = jnp.einsum("rqhw,rkhw->rhqk", query, dkey).astype(logits.dtype)
    return logits, by_query + by_key


def attend(
    query: Float[Array, "rows tokens heads width"],
    key: Float[Array, "rows tokens heads width"],
    value: Float[Array, "rows tokens heads width"],
) -> Float[Array, "rows tokens heads width"]:
    """Apply scaled dot-product attention, with logits and softmax in float32 or wider."""
    weights = jax.nn.softmax(attention_logits(query, key) * query.shape[-1] ** -0.5)
    return jnp.einsum("rhqk,rkhw->rqhw", weights.astype(value.dtype), value)


def attend_on_gpu(
    query: Array, key: Array, value: Array, kernel: str, tokens: int | None = None
) -> Array:
    """Apply scaled dot-product attention with cuDNN's fused kernel or with `attend`.

    Args:
        query, key, value: Arrays of shape (rows, tokens, heads, head width).
        kernel: The implementation, ``auto``, ``xla`` or ``cudnn``; see `attention_kernel`.
        tokens: The number of tokens before the padding at the end of each sequence; None if there
            is no padding.
    """
    if attention_kernel(kernel, query.dtype, query.shape[-1]) == "xla":
        return attend(query, key, value)
    lengths = None if tokens is None else jnp.full(query.shape[:1], tokens, jnp.int32)
    return jax.nn.dot_product_attention(
        query, key, value, implementation="cudnn",
        query_seq_lengths=lengths, key_value_seq_lengths=lengths,
    )  # fmt: skip


def attention_kernel(setting: str, dtype: Any, head_width: int) -> str:
    """Return the implementation of attention, ``xla`` or ``cudnn``, for the target devices of the
    compilation.

    Args:
        setting: The value of `model.attention`: ``auto``, ``xla`` or ``cudnn``. On a GPU, ``auto``
            selects ``cudnn`` if cuDNN supports the GPU, the dtype and the head width. On CPUs and
            TPUs, the result is always ``xla``.
        dtype: The dtype of queries, keys and values.
        head_width: The number of features of a query, key or value in one head.
    """
    kind = device_kind()
    newer = "NVIDIA" in kind and not any(name in kind for name in BEFORE_AMPERE)
    fits = jnp.dtype(dtype).itemsize == 2 and fits_cudnn(head_width)
    chosen = setting == "cudnn" or (setting == "auto" and newer and fits)
    return "cudnn" if platform() == "gpu" and chosen else "xla"


def fits_cudnn(head_width: int) -> bool:
    """Return whether cuDNN's fused attention supports heads with ``head_width`` features."""
    return head_width <= CUDNN_HEAD_WIDTH and head_width % 8 == 0


def compiles_as_loop(scan: bool | str) -> bool:
    """Return whether to compile the transformer blocks as a loop, given the value of
    ``model.scan``.

    The value ``auto`` selects a loop on CPUs only.
    """
    return platform() == "cpu" if scan == "auto" else bool(scan)


def attend_on_tpu(query: Heads, key: Heads, value: Heads) -> Heads:
    """Apply scaled dot-product attention on a TPU, to arrays of shape (rows, heads, tokens, head
    width).

    The logits are computed for a few heads at a time, to fit into the vector memory of a TPU core.
    The backward pass recomputes the logits. Unlike `attention_logits`, this function needs no
    custom gradient, since TPUs multiply float32 at bfloat16 precision by default.
    """
    size = query.shape[1] // _parts(query, key)
    parts = [
        _attend_heads(*(x[:, i : i + size] for x in (query, key, value)))
        for i in range(0, query.shape[1], size)
    ]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _parts(query: Heads, key: Heads) -> int:
    """Return the number of equal parts into which to split the attention heads.

    The result is the smallest divisor of the number of heads for which the logits of a part take at
    most `TPU_LOGITS_BYTES` per device. If even the logits of a single head exceed
    `TPU_LOGITS_BYTES`, the result is the number of heads. If heads are sharded over devices, or the
    batch size is symbolic, the result is 1.
    """
    rows, heads, queries, _ = query.shape
    if axis_size("tensor") > 1 or not isinstance(rows, int):
        return 1
    padded = -(-queries // 8) * 8 * -(-key.shape[2] // 128) * 128
    stored = 4 * padded * heads * rows // row_shards()
    return next(
        n
        for n in range(1, heads + 1)
        if heads % n == 0 and (n == heads or stored <= n * TPU_LOGITS_BYTES)
    )


@jax.checkpoint
def _attend_heads(query: Heads, key: Heads, value: Heads) -> Heads:
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("rhqw,rhkw->rhqk", query, key, preferred_element_type=wide)
    weights = jax.nn.softmax(logits * query.shape[-1] ** -0.5)
    return jnp.einsum("rhqk,rhkw->rhqw", weights.astype(value.dtype), value)
