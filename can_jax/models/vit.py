"""The Vision Transformer: pre-norm blocks, and an encoder of the visible patches."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from can_jax.distributed.mesh import constrain_batch_sharding, platform
from can_jax.distributed.sharding_rules import constrain_parameters
from can_jax.models.ops import (
    attend,
    attend_on_gpu,
    attend_on_tpu,
    compiles_as_loop,
    gelu,
    linear_product,
)
from can_jax.models.positions import sincos_2d

LAYER_NORM_EPS = 1e-6

# The values of a block that are saved for the backward pass, which recomputes the others.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,  # save everything: fastest, most memory
    "dots": jax.checkpoint_policies.checkpoint_dots,  # save every matrix product
    "dots_no_batch": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "full": jax.checkpoint_policies.nothing_saveable,  # save a block's input only
}


class Linear(nnx.Linear):
    """A linear layer over the last axis, initialized as in MAE: Xavier uniform, zero bias."""

    def __init__(self, inputs: int, outputs: int, **options: Any):
        init = nnx.initializers.xavier_uniform()
        super().__init__(inputs, outputs, kernel_init=init, dot_general=linear_product, **options)


def layer_norm(width: int, *, dtype: Any, **options: Any) -> nnx.LayerNorm:
    """Return a LayerNorm with float32 statistics.

    In bfloat16 mean and variance are computed in one pass, as E[x²] - E[x]². With an offset of m
    standard deviations the variance then errs by m² 2^-24, a fraction of what the rounding of the
    inputs to 8 bits has changed it by, m² 2^-18 / 3. Inputs of float32 take two passes.
    """
    narrow = jnp.finfo(dtype).bits < 32
    return nnx.LayerNorm(
        width, epsilon=LAYER_NORM_EPS, use_fast_variance=narrow, dtype=dtype, **options
    )


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
    """A multi-head self-attention over all tokens of a row.

    Args:
        width: The width of the input and the output.
        heads: The number of heads.
        kernel: The implementation of attention, one of `can_jax.models.ops.ATTENTION`.
        **options: The types and the random numbers of each layer.
    """

    def __init__(self, width: int, heads: int, kernel: str = "auto", **options: Any):
        # Query/key/value and head are axes of their own, so that heads can be split over devices.
        init = nnx.initializers.xavier_uniform()
        self.qkv = nnx.LinearGeneral(width, (3, heads, width // heads), kernel_init=init, **options)
        self.out = Linear(width, width, **options)
        self.kernel = kernel

    def __call__(self, x: Float[Array, "rows tokens width"]) -> Float[Array, "rows tokens width"]:
        """Attend from every token to all tokens of its row."""
        if platform() == "tpu":
            return self._merge_heads(attend_on_tpu(*self._project(x, "rhtd")))
        if platform() == "gpu":
            query, key, value = self._project(x, "rthd")
            attended = attend_on_gpu(query, key, value, self.kernel)
        else:
            qkv = self.qkv(x.reshape(-1, x.shape[-1]))
            attended = attend(*(qkv[:, i].reshape(*x.shape[:2], *qkv.shape[2:]) for i in range(3)))
        return self.out(attended.reshape(x.shape))

    def _project(self, x: Array, axes: str) -> Iterator[Array]:
        """Yield query, key and value, each in the layout in which accelerators use it.

        The axes are r(ow), t(oken), h(ead), d(imension). One product for the three is faster, but
        then each of them is copied.
        """
        dtype = self.qkv.dtype
        assert self.qkv.bias is not None
        kernel, bias = (p[...].astype(dtype) for p in (self.qkv.kernel, self.qkv.bias))
        for i in range(3):
            offset = bias[i, :, None] if axes == "rhtd" else bias[i]
            yield jnp.einsum(f"rtw,whd->{axes}", x.astype(dtype), kernel[:, i]) + offset

    def _merge_heads(self, attended: Float[Array, "rows heads tokens head_width"]) -> Array:
        """Apply the output layer to heads that precede the tokens, without moving them."""
        dtype = attended.dtype
        assert self.out.bias is not None
        kernel = self.out.kernel[...].astype(dtype)
        kernel = kernel.reshape(attended.shape[1], attended.shape[3], -1)
        return jnp.einsum("rhtd,hdw->rtw", attended, kernel) + self.out.bias[...].astype(dtype)


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

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        residual_dtype: Any,
        *,
        attention: str = "auto",
        **options: Any,
    ):
        wide = options | {"dtype": residual_dtype}
        self.attention_norm = layer_norm(width, **wide)
        self.attention = Attention(width, heads, attention, **options)
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
    unrolls the loop, which leaves the compiler more freedom; ``"auto"`` does so on accelerators.
    Results and checkpoints are the same.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        scan: bool | str,
        remat: str,
        residual_dtype: Any,
        rngs: nnx.Rngs,
        attention: str = "auto",
        **options: Any,
    ):
        @nnx.split_rngs(splits=depth)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(
                width, heads, mlp_width, residual_dtype,
                attention=attention, rngs=rngs, **options,
            )  # fmt: skip

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
        block, state = nnx.split(self.layers)
        layers = nnx.to_pure_dict(state)
        scan = compiles_as_loop(self.scan)

        def apply(x: Array, layer: tuple[Any, Any]) -> tuple[Array, None]:
            state, drop = layer
            # Parameters that are split over all devices are gathered here, beside earlier layers.
            state = constrain_parameters(state, stacked=False)
            return constrain_batch_sharding(nnx.merge(block, state)(x, drop)), None

        if (policy := REMAT_POLICIES[self.remat]) is not None:
            apply = jax.checkpoint(apply, policy=policy, prevent_cse=not scan)
        x, _ = jax.lax.scan(apply, x, (layers, drop), unroll=1 if scan else self.depth)
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
        attention: The implementation of attention; see `Attention`.
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
        scan: bool | str,
        remat: str,
        residual_dtype: Any,
        attention: str = "auto",
        **options: Any,
    ):
        self.blocks = Blocks(
            depth, width, heads, mlp_width,
            scan=scan, remat=remat, residual_dtype=residual_dtype, attention=attention, **options,
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
