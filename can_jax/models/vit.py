"""The Vision Transformer: pre-norm blocks, and the encoder that sees visible patches only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from can_jax.distributed.mesh import pin_rows
from can_jax.models.positions import sincos_2d

LAYER_NORM_EPS = 1e-6

# What the backward pass keeps of a block; the rest is computed again.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,  # keep everything: fastest, most memory
    "dots": jax.checkpoint_policies.checkpoint_dots,  # keep every matrix product
    "dots_no_batch": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "full": jax.checkpoint_policies.nothing_saveable,  # keep a block's input only
}


@jax.custom_vjp
def matrix_product(
    x: Float[Array, "rows inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "rows outputs"]:
    """``x @ kernel``.

    In the kernel's gradient both matrices are multiplied along their rows, for which the CPU
    backend has a slower routine than for a row with a column. There the narrower of the two is
    transposed before, the barrier keeping the compiler from taking that back.
    """
    return x @ kernel


def _kernel_gradient_on_cpu(x: Array, gradient: Array) -> Array:
    kept = jax.lax.optimization_barrier
    if x.shape[1] <= gradient.shape[1]:
        return kept(x.T) @ gradient
    return kept(kept(gradient.T) @ x).T


def _product_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    of_kernel = jax.lax.platform_dependent(
        x, gradient, cpu=_kernel_gradient_on_cpu, default=lambda x, gradient: x.T @ gradient
    )
    return gradient @ kernel.T, of_kernel


matrix_product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_backward)


def _product_of_linear(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """As a linear layer calls it, with axes that are always the same."""
    return matrix_product(x, kernel)


class Linear(nnx.Linear):
    """A linear layer over the last axis, initialised as in MAE: Xavier uniform, zero bias.

    The product is of two matrices, all leading axes being one: the CPU backend is twice as fast in
    the backward pass so, and accelerators do not mind.
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
        """Apply to every vector."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        return super().__call__(flat, out_sharding).reshape(*inputs.shape[:-1], -1)


def layer_norm(width: int, **options: Any) -> nnx.LayerNorm:
    """LayerNorm with float32 statistics by the two-pass variance, which bf16 inputs need."""
    return nnx.LayerNorm(width, epsilon=LAYER_NORM_EPS, use_fast_variance=False, **options)


@jax.custom_vjp
def attention_logits(
    query: Float[Array, "rows tokens heads width"], key: Float[Array, "rows tokens heads width"]
) -> Float[Array, "rows heads tokens tokens"]:
    """Products of all queries and keys, in float32, or float64 if given that.

    Their gradient is rounded to the type of the queries before it is multiplied: left to itself
    the backward pass would multiply in float32, several times slower on accelerators.
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
    """Scaled dot-product attention. Logits and softmax are float32, or float64 if given that."""
    weights = jax.nn.softmax(attention_logits(query, key) * query.shape[-1] ** -0.5)
    return jnp.einsum("rhqk,rkhw->rqhw", weights.astype(value.dtype), value)


@jax.custom_vjp
def gelu(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The exact GELU, ``x · Φ(x)``, computed in float32, or float64 if given that.

    Φ is written by erf, in one polynomial where `jax.nn.gelu` has the two of erfc, and the backward
    pass keeps nothing but ``x``.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * normal_cdf(wide)).astype(x.dtype)


def normal_cdf(x: Array) -> Array:
    """Φ, the distribution function of the standard normal distribution."""
    return 0.5 * (1 + jax.lax.erf(x * 2**-0.5))


def _gelu_backward(x: Array, gradient: Array) -> tuple[Array]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    density = jnp.exp(-0.5 * wide**2) * (2 * jnp.pi) ** -0.5
    return ((gradient * (normal_cdf(wide) + wide * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def drop_path(
    key: Key[Array, ""], rate: float, depth: int, rows: int
) -> Float[Array, "depth rows 2"]:
    """For each row and each branch of each block 0, by chance, or what makes up for it (stochastic
    depth, arXiv 1603.09382). The chance grows from 0 at the first block to ``rate`` at the last."""
    keep = 1 - jnp.linspace(0, rate, depth)[:, None, None]
    return jax.random.bernoulli(key, keep, (depth, rows, 2)) / keep


class Attention(nnx.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, width: int, heads: int, **options: Any):
        # Query, key, value and head are axes of their own, so that heads can be split over devices.
        init = nnx.initializers.xavier_uniform()
        self.qkv = nnx.LinearGeneral(width, (3, heads, width // heads), kernel_init=init, **options)
        self.out = Linear(width, width, **options)

    def __call__(self, x: Float[Array, "rows tokens width"]) -> Float[Array, "rows tokens width"]:
        """Let every token attend to all tokens of its row."""
        rows, tokens, width = x.shape
        qkv = self.qkv(x.reshape(-1, width))
        query, key, value = (qkv[:, i].reshape(rows, tokens, *qkv.shape[2:]) for i in range(3))
        return self.out(attend(query, key, value).reshape(x.shape))


class Mlp(nnx.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, width: int, hidden: int, **options: Any):
        self.expand = Linear(width, hidden, **options)
        self.contract = Linear(hidden, width, **options)

    def __call__(self, x: Float[Array, "rows tokens width"]) -> Float[Array, "rows tokens width"]:
        """Apply to every token."""
        return self.contract(gelu(self.expand(x)))


class Block(nnx.Module):
    """One pre-norm transformer block; its normalizations read and compute in ``residual_dtype``."""

    def __init__(self, width: int, heads: int, mlp_width: int, residual_dtype: Any, **options: Any):
        wide = options | {"dtype": residual_dtype}
        self.attention_norm = layer_norm(width, **wide)
        self.attention = Attention(width, heads, **options)
        self.mlp_norm = layer_norm(width, **wide)
        self.mlp = Mlp(width, mlp_width, **options)

    def __call__(
        self, x: Float[Array, "rows tokens width"], drop: Float[Array, "rows 2"] | None = None
    ) -> Float[Array, "rows tokens width"]:
        """Attention, then the MLP, each added to its input; ``drop`` is what each is multiplied by,
        as `drop_path` draws it."""
        attended = self.attention(self.attention_norm(x)).astype(x.dtype)
        x = x + (attended if drop is None else attended * drop[:, :1, None].astype(x.dtype))
        computed = self.mlp(self.mlp_norm(x)).astype(x.dtype)
        return x + (computed if drop is None else computed * drop[:, 1:, None].astype(x.dtype))


class Blocks(nnx.Module):
    """``depth`` blocks whose parameters are stacked on a leading layer axis.

    One layout serves both forms: ``scan=True`` compiles a single block and loops over it (short
    compile times), ``scan=False`` lays all of them out (more freedom for the compiler). The numbers
    and the checkpoints are the same.
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
        """Apply the blocks one after the other."""
        block, layers = nnx.split(self.layers)

        def apply(x: Array, layer: tuple[nnx.State, Any]) -> tuple[Array, None]:
            state, drop = layer
            return pin_rows(nnx.merge(block, state)(x, drop)), None

        if (policy := REMAT_POLICIES[self.remat]) is not None:
            apply = jax.checkpoint(apply, policy=policy, prevent_cse=not self.scan)
        x, _ = jax.lax.scan(apply, x, (layers, drop), unroll=1 if self.scan else self.depth)
        return x


class Transformer(nnx.Module):
    """Blocks on a residual stream of ``residual_dtype``, and the LayerNorm that ends it.

    A subclass creates its input layers before it calls this constructor, as initial parameters
    follow from the order of creation.
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
        self.residual_dtype = residual_dtype


class Encoder(Transformer):
    """A ViT over a subset of the patches: embed, add positions, class token, blocks, norm."""

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
        """Encode patches that sit at places ``index`` of the grid. The class token comes first.

        Args:
            patches, index: of each row.
            grid: patches along (height, width).
            drop: what the branches of each block are multiplied by, as `drop_path` draws it.
            norm: whether the last LayerNorm is applied.
        """
        tokens = self.patch_embed(patches).astype(self.residual_dtype)
        rows, _, width = tokens.shape
        tokens = tokens + jnp.asarray(sincos_2d(grid, width), tokens.dtype)[index]
        class_token = self.class_token[...].astype(tokens.dtype)
        class_tokens = jnp.broadcast_to(class_token, (rows, 1, width))
        x = pin_rows(jnp.concatenate([class_tokens, tokens], axis=1))
        x = self.blocks(x, drop)
        return self.norm(x) if norm else x
