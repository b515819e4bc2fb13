"""The Vision Transformer: pre-norm blocks, and an encoder of the visible patches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from can_jax.distributed.mesh import constrain_batch_sharding
from can_jax.models.positions import sincos_2d

LAYER_NORM_EPS = 1e-6

# The values of a block that are saved for the backward pass, which recomputes the others.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,  # save everything: fastest, most memory
    "dots": jax.checkpoint_policies.checkpoint_dots,  # save every matrix product
    "dots_no_batch": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "full": jax.checkpoint_policies.nothing_saveable,  # save a block's input only
}


@jax.custom_vjp
def matrix_product(
    x: Float[Array, "rows inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "rows outputs"]:
    """Return ``x @ kernel``, with a gradient of the kernel that is faster on CPUs.

    That gradient contracts the rows of both matrices, ``x.T @ gradient``. The CPU backend has a
    slower routine for it than for a product of rows with columns. So the narrower matrix is
    transposed first, and a barrier keeps the compiler from undoing that.
    """
    return x @ kernel


def _kernel_gradient_on_cpu(x: Array, gradient: Array) -> Array:
    """Return ``x.T @ gradient`` with the narrower matrix transposed explicitly."""
    barrier = jax.lax.optimization_barrier
    if x.shape[1] <= gradient.shape[1]:
        return barrier(x.T) @ gradient
    return barrier(barrier(gradient.T) @ x).T


def _product_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    of_kernel = jax.lax.platform_dependent(
        x, gradient, cpu=_kernel_gradient_on_cpu, default=lambda x, gradient: x.T @ gradient
    )
    return gradient @ kernel.T, of_kernel


matrix_product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_backward)


def _product_of_linear(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """Return the matrix product for `nnx.Linear`, which always contracts the same axes."""
    return matrix_product(x, kernel)


class Linear(nnx.Linear):
    """A linear layer over the last axis, initialized as in MAE: Xavier uniform, zero bias.

    All leading axes are merged into one, so that the product is one of two matrices. That halves
    the time of the backward pass on CPUs and costs nothing on accelerators.
    """

    def __init__(self, inputs: int, outputs: int, **options: Any):
        super().__init__(
            inputs,
            outputs,
            kernel_init=nnx.initializers.xavier_uniform(),
            dot_general=_product_of_linear,
            **options,
        )

    def __call__(
        self, inputs: Float[Array, "*batch inputs"], out_sharding: Any = None
    ) -> Float[Array, "*batch outputs"]:
        """Apply the layer to the last axis."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        return super().__call__(flat, out_sharding).reshape(*inputs.shape[:-1], -1)


def layer_norm(width: int, **options: Any) -> nnx.LayerNorm:
    """Return a LayerNorm with float32 statistics and the two-pass variance, which bf16 needs."""
    return nnx.LayerNorm(width, epsilon=LAYER_NORM_EPS, use_fast_variance=False, **options)


@jax.custom_vjp
def attention_logits(
    query: Float[Array, "rows tokens heads width"], key: Float[Array, "rows tokens heads width"]
) -> Float[Array, "rows heads tokens tokens"]:
    """Return the products of all queries and keys, in float32, or float64 for float64 inputs.

    Their gradient is rounded to the type of the queries before it is multiplied. The default
    backward pass would multiply in float32, several times slower on accelerators.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    return jnp.einsum("rqhw,rkhw->rhqk", query, key, preferred_element_type=wide)


def _logits_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    query, key = saved
    narrow = gradient.astype(query.dtype)
    return (
        jnp.einsum("rhqk,rkhw->rqhw", narrow, key),
        jnp.einsum("rhqk,rqhw->rkhw", narrow, query),
    )


attention_logits.defvjp(
    lambda query, key: (attention_logits(query, key), (query, key)), _logits_backward
)


def attend(
    query: Float[Array, "rows tokens heads width"],
    key: Float[Array, "rows tokens heads width"],
    value: Float[Array, "rows tokens heads width"],
) -> Float[Array, "rows tokens heads width"]:
    """Apply scaled dot-product attention; logits and softmax are at least float32."""
    weights = jax.nn.softmax(attention_logits(query, key) * query.shape[-1] ** -0.5)
    return jnp.einsum("rhqk,rkhw->rqhw", weights.astype(value.dtype), value)


@jax.custom_vjp
def gelu(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return the exact GELU, ``x · Φ(x)``, computed in at least float32.

    Φ is computed by erf, a single polynomial, where `jax.nn.gelu` evaluates the two of erfc. The
    backward pass saves ``x`` only.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * normal_cdf(wide)).astype(x.dtype)


def normal_cdf(x: Array) -> Array:
    """Return Φ, the distribution function of the standard normal distribution."""
    return 0.5 * (1 + jax.lax.erf(x * 2**-0.5))


def _gelu_backward(x: Array, gradient: Array) -> tuple[Array]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    density = jnp.exp(-0.5 * wide**2) * (2 * jnp.pi) ** -0.5
    return ((gradient * (normal_cdf(wide) + wide * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def drop_path(
    key: Key[Array, ""], rate: float, depth: int, rows: int
) -> Float[Array, "depth rows 2"]:
    """Draw the factors of stochastic depth for each block, row and branch (arXiv 1603.09382).

    A factor is 0 with the drop probability p of its block, else ``1 / (1 - p)``. The probability
    rises linearly from 0 at the first block to ``rate`` at the last.

    Args:
        key: The random key.
        rate: The drop probability of the last block, in [0, 1).
        depth: The number of blocks.
        rows: The number of rows.
    """
    keep = 1 - jnp.linspace(0, rate, depth)[:, None, None]
    return jax.random.bernoulli(key, keep, (depth, rows, 2)) / keep


class Attention(nnx.Module):
    """A multi-head self-attention over all tokens of a row."""

    def __init__(self, width: int, heads: int, **options: Any):
        # Query/key/value and head are axes of their own, so that heads can be split over devices.
        init = nnx.initializers.xavier_uniform()
        self.qkv = nnx.LinearGeneral(width, (3, heads, width // heads), kernel_init=init, **options)
        self.out = Linear(width, width, **options)

    def __call__(self, x: Float[Array, "rows tokens width"]) -> Float[Array, "rows tokens width"]:
        """Attend from every token to all tokens of its row."""
        rows, tokens, width = x.shape
        qkv = self.qkv(x.reshape(-1, width))
        query, key, value = (qkv[:, i].reshape(rows, tokens, *qkv.shape[2:]) for i in range(3))
        return self.out(attend(query, key, value).reshape(x.shape))


class Mlp(nnx.Module):
    """A two-layer perceptron with the exact GELU."""

    def __init__(self, width: int, hidden: int, **options: Any):
        self.expand = Linear(width, hidden, **options)
        self.contract = Linear(hidden, width, **options)

    def __call__(self, x: Float[Array, "rows tokens width"]) -> Float[Array, "rows tokens width"]:
        """Apply the MLP to every token."""
        return self.contract(gelu(self.expand(x)))


class Block(nnx.Module):
    """A pre-norm transformer block, whose LayerNorms compute in ``residual_dtype``."""

    def __init__(self, width: int, heads: int, mlp_width: int, residual_dtype: Any, **options: Any):
        wide = options | {"dtype": residual_dtype}
        self.attention_norm = layer_norm(width, **wide)
        self.attention = Attention(width, heads, **options)
        self.mlp_norm = layer_norm(width, **wide)
        self.mlp = Mlp(width, mlp_width, **options)

    def __call__(
        self, x: Float[Array, "rows tokens width"], drop: Float[Array, "rows 2"] | None = None
    ) -> Float[Array, "rows tokens width"]:
        """Add attention, then the MLP, each to its input.

        Args:
            x: The residual stream.
            drop: The factor of each row's attention and MLP branch, from `drop_path`; None for 1.
        """
        attended = self.attention(self.attention_norm(x)).astype(x.dtype)
        x = x + (attended if drop is None else attended * drop[:, :1, None].astype(x.dtype))
        computed = self.mlp(self.mlp_norm(x)).astype(x.dtype)
        return x + (computed if drop is None else computed * drop[:, 1:, None].astype(x.dtype))


class Blocks(nnx.Module):
    """A stack of ``depth`` blocks, whose parameters share a leading layer axis.

    ``scan=True`` compiles a single block and loops over it, for short compile times. ``scan=False``
    unrolls the loop, which leaves the compiler more freedom. Results and checkpoints are the same.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        scan: bool,
        remat: str,
        residual_dtype: Any,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        @nnx.split_rngs(splits=depth)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(width, heads, mlp_width, residual_dtype, rngs=rngs, **options)

        self.layers = stack(rngs)
        self.depth = depth
        self.scan = scan
        self.remat = remat

    def __call__(
        self,
        x: Float[Array, "rows tokens width"],
        drop: Float[Array, "depth rows 2"] | None = None,
    ) -> Float[Array, "rows tokens width"]:
        """Apply the blocks one after the other.

        Args:
            x: The residual stream.
            drop: The factors of each block's branches, from `drop_path`; None for 1.
        """
        block, layers = nnx.split(self.layers)

        def apply(x: Array, layer: tuple[nnx.State, Any]) -> tuple[Array, None]:
            state, drop = layer
            return constrain_batch_sharding(nnx.merge(block, state)(x, drop)), None

        if (policy := REMAT_POLICIES[self.remat]) is not None:
            apply = jax.checkpoint(apply, policy=policy, prevent_cse=not self.scan)
        x, _ = jax.lax.scan(apply, x, (layers, drop), unroll=1 if self.scan else self.depth)
        return x


class Transformer(nnx.Module):
    """A stack of blocks on a residual stream of ``residual_dtype``, with a final LayerNorm.

    A subclass creates its input layers before it calls this constructor, since initial parameters
    depend on the order of creation.

    Args:
        width: The width of the residual stream.
        depth: The number of blocks.
        heads: The number of attention heads.
        mlp_width: The width of the hidden layer of each MLP.
        scan: Whether the blocks are compiled as a loop; see `Blocks`.
        remat: The rematerialization policy of a block, a key of `REMAT_POLICIES`.
        residual_dtype: The type of the residual stream and the LayerNorms.
        **options: The types and the random numbers of each layer.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        *,
        scan: bool,
        remat: str,
        residual_dtype: Any,
        **options: Any,
    ):
        self.blocks = Blocks(
            depth, width, heads, mlp_width,
            scan=scan, remat=remat, residual_dtype=residual_dtype, **options,
        )  # fmt: skip
        self.norm = layer_norm(width, **options | {"dtype": residual_dtype})
        self.width = width
        self.residual_dtype = residual_dtype


class Encoder(Transformer):
    """A ViT encoder of a subset of the patches, with a class token.

    Args:
        pixels: Pixel values per patch, all channels included.
        width: The width of the residual stream.
        depth: The number of blocks.
        heads: The number of attention heads.
        mlp_width: The width of the hidden layer of each MLP.
        rngs: The random numbers of the initialization.
        dtype: The type of activations and matrix products.
        param_dtype: The type of the parameters.
        **run: The other options of `Transformer`.
    """

    def __init__(
        self,
        pixels: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        *,
        rngs: nnx.Rngs,
        dtype: Any,
        param_dtype: Any,
        **run: Any,
    ):
        options = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.patch_embed = Linear(pixels, width, **options)
        token = nnx.initializers.normal(0.02)(rngs.params(), (width,), param_dtype)
        self.class_token = nnx.Param(token)
        super().__init__(width, depth, heads, mlp_width, **run, **options)

    def __call__(
        self,
        patches: Float[Array, "rows visible pixels"],
        index: Int[Array, "rows visible"],
        grid: tuple[int, int],
        *,
        drop: Float[Array, "depth rows 2"] | None = None,
        norm: bool = True,
    ) -> Float[Array, "rows visible+1 width"]:
        """Encode patches; the class token comes first.

        Args:
            patches: The patches of each row.
            index: The index of each patch in the grid, in row-major order.
            grid: The number of patches along (height, width).
            drop: The factors of each block's branches, from `drop_path`; None for 1.
            norm: Whether the final LayerNorm is applied.
        """
        tokens = self.patch_embed(patches).astype(self.residual_dtype)
        rows, _, width = tokens.shape
        tokens = tokens + jnp.asarray(sincos_2d(grid, width), tokens.dtype)[index]
        class_token = self.class_token[...].astype(tokens.dtype)
        class_tokens = jnp.broadcast_to(class_token, (rows, 1, width))
        x = constrain_batch_sharding(jnp.concatenate([class_tokens, tokens], axis=1))
        x = self.blocks(x, drop)
        return self.norm(x) if norm else x
