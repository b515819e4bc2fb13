"""The layers of the Vision Transformer: attention, MLP, pre-norm blocks and the stack of blocks."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jaxtyping import Array, Float, Key

from can_jax.distributed.mesh import constrain_batch_sharding, platform
from can_jax.distributed.sharding_rules import constrain_parameters
from can_jax.models.ops import (
    ACTIVATIONS,
    attend,
    attend_on_gpu,
    attend_on_tpu,
    attention_kernel,
    compiles_as_loop,
    linear_product,
    unfused,
)
from can_jax.models.variant import LAYER_NORM_EPS, PLAIN, Variant

BIASES = tuple((layer, "bias") for layer in ("qkv", "out", "expand", "contract"))

# The values of a block that are saved for the backward pass, which recomputes all others.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,  # save everything: fastest, most memory
    "dots": jax.checkpoint_policies.checkpoint_dots,  # save every matrix product
    "dots_no_batch": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "full": jax.checkpoint_policies.nothing_saveable,  # save a block's input only
}


class Linear(nnx.Linear):
    """A linear layer over the last axis, initialized as in MAE, with a Xavier-uniform kernel and
    zero bias.

    With ``zero=True``, the kernel is initialized to zero instead.
    """

    def __init__(self, inputs: int, outputs: int, *, zero: bool = False, **options: Any):
        init = nnx.initializers.zeros if zero else nnx.initializers.xavier_uniform()
        super().__init__(inputs, outputs, kernel_init=init, **options)

    def __call__(
        self, inputs: Float[Array, "*batch inputs"], out_sharding: Any = None
    ) -> Float[Array, "*batch outputs"]:
        """Apply the layer, whose bias may have the axes for sequences and tokens that
        `biases_by_row` adds."""
        bias = None if self.bias is None else self.bias[...]
        given = (inputs, self.kernel[...], bias)
        inputs, kernel, bias = self.promote_dtype(given, dtype=self.dtype)
        product = linear_product(inputs, kernel)
        return product if bias is None else product + bias


def layer_norm(
    width: int, epsilon: float = LAYER_NORM_EPS, *, dtype: Any, **options: Any
) -> nnx.LayerNorm:
    """Return a LayerNorm that computes its statistics in float32 or wider.

    For bfloat16 inputs, mean and variance are computed in one pass, as E[x²] - E[x]². If the mean
    is m times the standard deviation, the one-pass variance has a relative error of m² 2^-24.
    Rounding the inputs to bfloat16 causes a larger relative error of the variance, m² 2^-18 / 3.
    For float32 inputs, mean and variance are computed in two passes.
    """
    narrow = jnp.finfo(dtype).bits < 32
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=narrow, dtype=dtype, **options)


def drop_path(
    key: Key[Array, ""], rate: float, depth: int, rows: int
) -> Float[Array, "depth rows 2"]:
    """Draw stochastic-depth factors (arXiv 1603.09382), one per block, sequence and branch.

    The branches of a block are attention and MLP. A factor is 0 with probability p, the drop
    probability of its block, and ``1 / (1 - p)`` otherwise. The drop probability increases linearly
    from 0 in the first block to ``rate`` in the last.

    Args:
        key: The random key for all factors.
        rate: The drop probability of the last block, in [0, 1).
        depth: The number of transformer blocks.
        rows: The number of sequences in the batch.
    """
    keep = 1 - jnp.linspace(0, rate, depth)[:, None, None]
    return jax.random.bernoulli(key, keep, (depth, rows, 2)) / keep


class Attention(nnx.Module):
    """A multi-head self-attention layer over all tokens of a sequence.

    Args:
        width: The width of the input and output tokens.
        heads: The number of attention heads.
        kernel: The implementation, ``auto``, ``xla`` or ``cudnn``; see
            `can_jax.models.ops.attention_kernel`.
        variant: The architecture options, such as LayerNorms of queries and keys.
        **options: The ``dtype``, ``param_dtype`` and ``rngs`` of each layer.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kernel: str = "auto",
        variant: Variant = PLAIN,
        **options: Any,
    ):
        # Query/key/value and head are axes of their own, so that heads can be split over devices.
        init = nnx.initializers.xavier_uniform()
        self.qkv = nnx.LinearGeneral(width, (3, heads, width // heads), kernel_init=init, **options)
        self.out = Linear(width, width, **options)
        self.kernel = kernel
        self.qk_norm = variant.qk_norm
        if self.qk_norm:
            self.query_norm = layer_norm(width // heads, variant.epsilon, **options)
            self.key_norm = layer_norm(width // heads, variant.epsilon, **options)

    def __call__(
        self, x: Float[Array, "rows tokens width"], tokens: int | None = None
    ) -> Float[Array, "rows tokens width"]:
        """Apply self-attention within each sequence.

        Args:
            x: The input tokens, of shape (rows, tokens, width).
            tokens: The number of tokens before the padding at the end of each sequence; None if
                there is no padding.
        """
        if platform() == "tpu":
            return self._merge_heads(attend_on_tpu(*self._normalize(*self._project(x))))
        if platform() == "gpu":
            query, key, value = self._normalize(*self._project_at_once(x))
            attended = attend_on_gpu(query, key, value, self.kernel, tokens)
        else:
            qkv = self.qkv(x.reshape(-1, x.shape[-1]))
            parts = (qkv[:, i].reshape(*x.shape[:2], *qkv.shape[2:]) for i in range(3))
            attended = attend(*self._normalize(*parts))
        return self.out(attended.reshape(x.shape))

    def computed_by(self) -> str:
        """Return the implementation of attention on the target devices, ``xla`` or ``cudnn``."""
        width = self.qkv.kernel.shape[-1]
        return attention_kernel(self.kernel, self.qkv.dtype, width)

    def _normalize(self, query: Array, key: Array, value: Array) -> tuple[Array, Array, Array]:
        """Apply LayerNorm to the queries and keys if the option ``qk_norm`` is set."""
        if self.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        return query, key, value

    def _project(self, x: Array) -> Iterator[Array]:
        """Yield query, key and value of shape (rows, heads, tokens, head width), the layout for
        TPUs.

        In the `einsum`, the axes are r(ow), t(oken), w(idth), h(ead) and d(imension of a head).
        Three separate products avoid the copies that XLA would make of a joint product's parts.
        """
        kernel, bias = self._qkv_parameters()
        for i in range(3):
            product = jnp.einsum("rtw,whd->rhtd", x.astype(kernel.dtype), kernel[:, i])
            yield product + bias[i, :, None]

    def _project_at_once(self, x: Array) -> Iterator[Array]:
        """Yield query, key and value of shape (rows, tokens, heads, head width), the layout for
        GPUs.

        One matrix product computes query, key and value. A single GPU kernel makes the copies of
        query, key and value that cuDNN requires.
        """
        kernel, bias = self._qkv_parameters()
        product = jnp.einsum("rtw,wihd->rtihd", x.astype(kernel.dtype), kernel)
        product = unfused(product) + bias
        for i in range(3):
            yield product[:, :, i]

    def _qkv_parameters(self) -> tuple[Array, Array]:
        """Return kernel and bias of the query-key-value projection, in the computation dtype."""
        assert self.qkv.bias is not None
        kernel, bias = (p[...].astype(self.qkv.dtype) for p in (self.qkv.kernel, self.qkv.bias))
        return kernel, bias

    def _merge_heads(self, attended: Float[Array, "rows heads tokens head_width"]) -> Array:
        """Apply the output layer to attended values of shape (rows, heads, tokens, head width)."""
        dtype = attended.dtype
        assert self.out.bias is not None
        kernel = self.out.kernel[...].astype(dtype)
        kernel = kernel.reshape(attended.shape[1], attended.shape[3], -1)
        return jnp.einsum("rhtd,hdw->rtw", attended, kernel) + self.out.bias[...].astype(dtype)


class Mlp(nnx.Module):
    """A 2-layer MLP with the GELU activation, by default the exact form."""

    def __init__(self, width: int, hidden: int, variant: Variant = PLAIN, **options: Any):
        self.expand = Linear(width, hidden, **options)
        self.contract = Linear(hidden, width, **options)
        self.activation = ACTIVATIONS[variant.gelu]

    def __call__(self, x: Float[Array, "rows tokens width"]) -> Float[Array, "rows tokens width"]:
        """Apply the MLP to each token independently."""
        return self.contract(self.activation(self.expand(x)))


class Block(nnx.Module):
    """A pre-norm transformer block, whose LayerNorms return arrays of dtype ``residual_dtype``."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        residual_dtype: Any,
        *,
        attention: str = "auto",
        variant: Variant = PLAIN,
        **options: Any,
    ):
        wide = options | {"dtype": residual_dtype}
        self.attention_norm = layer_norm(width, variant.epsilon, **wide)
        self.attention = Attention(width, heads, attention, variant, **options)
        self.mlp_norm = layer_norm(width, variant.epsilon, **wide)
        self.mlp = Mlp(width, mlp_width, variant, **options)
        self.scaled = variant.layer_scale is not None
        if variant.layer_scale is not None:
            factors = jnp.full((width,), variant.layer_scale, options["param_dtype"])
            self.attention_scale, self.mlp_scale = nnx.Param(factors), nnx.Param(factors)

    def __call__(
        self,
        x: Float[Array, "rows tokens width"],
        drop: Float[Array, "rows 2"] | None = None,
        tokens: int | None = None,
    ) -> Float[Array, "rows tokens width"]:
        """Apply attention and the MLP, each with a residual connection.

        Args:
            x: The residual stream, of shape (rows, tokens, width).
            drop: The block's stochastic-depth factors from `drop_path`, one for the attention and
                one for the MLP of each sequence; None disables stochastic depth.
            tokens: The number of tokens before the padding at the end of each sequence; None if
                there is no padding.
        """
        attended = self.attention(self.attention_norm(x), tokens).astype(x.dtype)
        if self.scaled:
            attended = attended * self.attention_scale[...].astype(x.dtype)
        x = x + (attended if drop is None else attended * drop[:, :1, None].astype(x.dtype))
        computed = self.mlp(self.mlp_norm(x)).astype(x.dtype)
        if self.scaled:
            computed = computed * self.mlp_scale[...].astype(x.dtype)
        return x + (computed if drop is None else computed * drop[:, 1:, None].astype(x.dtype))


def biases_by_row(layers: Any, rows: Any) -> tuple[Any, Any]:
    """Separate the biases of linear layers from the other parameters, and repeat the biases for
    each sequence.

    On GPUs, repeating the biases speeds up their gradients. XLA's GPU compiler sums the gradient of
    a bias over all tokens with two kernels per layer. With a bias for each sequence, the sum over
    its tokens is fused into the kernel that computes the gradient. The bias gradients are then
    summed over sequences once for all layers.

    Args:
        layers: The parameters of all blocks, stacked along a leading layer axis.
        rows: The number of sequences in the batch, which may be symbolic in an export.

    Returns:
        Two trees: the parameters without the biases of linear layers, and these biases with shape
        (layers, rows, 1, …). The axis of size 1 broadcasts the biases over tokens.
    """
    flat = traverse_util.flatten_dict(layers)
    biases = {path: flat.pop(path) for path in list(flat) if path[-2:] in BIASES}
    # Biases are small, so those of all blocks are gathered from their shards at once.
    whole = constrain_parameters(traverse_util.unflatten_dict(biases))
    repeated = jax.tree.map(
        lambda bias: jnp.broadcast_to(bias[:, None, None], (len(bias), rows, 1, *bias.shape[1:])),
        whole,
    )
    return traverse_util.unflatten_dict(flat), repeated


def merged(first: Any, second: Any) -> Any:
    """Merge two nested dicts that have no leaf path in common."""
    flat = traverse_util.flatten_dict(first) | traverse_util.flatten_dict(second)
    return traverse_util.unflatten_dict(flat)


class Blocks(nnx.Module):
    """A stack of transformer blocks, whose parameters are stacked along a leading layer axis.

    ``scan=True`` compiles one block and loops over it, which shortens compilation. ``scan=False``
    unrolls the loop, so that XLA can optimize across blocks. ``scan="auto"`` unrolls the loop on
    GPUs and TPUs. Checkpoints do not depend on ``scan``; results differ only by rounding.
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
        """Apply all blocks in sequence.

        Args:
            x: The residual stream, of shape (rows, tokens, width).
            drop: The factors that `drop_path` returns; None disables stochastic depth.
        """
        attention, tokens = self.layers.attention, None
        if x.shape[1] % 2 and attention.computed_by() == "cudnn":
            # cuDNN requires an even number of tokens.
            tokens, x = x.shape[1], jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
        block, state = nnx.split(self.layers)
        layers = nnx.to_pure_dict(state)
        scan = compiles_as_loop(self.scan)
        by_row: Any = {}
        if platform() == "gpu" and not scan:
            layers, by_row = biases_by_row(layers, x.shape[0])

        def apply(x: Array, layer: tuple[Any, Any, Any]) -> tuple[Array, None]:
            state, by_row, drop = layer
            # Gather sharded parameters per block, so that XLA can overlap this with computation.
            state = merged(constrain_parameters(state, stacked=False), by_row)
            return constrain_batch_sharding(nnx.merge(block, state)(x, drop, tokens)), None

        if (policy := REMAT_POLICIES[self.remat]) is not None:
            apply = jax.checkpoint(apply, policy=policy, prevent_cse=not scan)
        inputs = (layers, by_row, drop)
        x, _ = jax.lax.scan(apply, x, inputs, unroll=1 if scan else self.depth)
        return x[:, :tokens]


class Transformer(nnx.Module):
    """The base class of encoder and decoder: a stack of transformer blocks with a final LayerNorm.

    A subclass must create its input layers before it calls this constructor, since initial
    parameters depend on the order of creation.

    Args:
        width: The width of the residual stream.
        depth: The number of transformer blocks.
        heads: The number of attention heads per block.
        mlp_width: The width of the hidden layer of each MLP.
        scan: Whether to compile the blocks as a loop: True, False or ``auto``; see `Blocks`.
        attention: The implementation of attention: ``auto``, ``xla`` or ``cudnn``.
        remat: The name of the rematerialization policy, a key of `REMAT_POLICIES`.
        residual_dtype: The dtype of the residual stream and the LayerNorms.
        variant: The architecture options of the blocks, by default those of MAE.
        **options: The ``dtype``, ``param_dtype`` and ``rngs`` of each layer.
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
        variant: Variant = PLAIN,
        **options: Any,
    ):
        self.blocks = Blocks(
            depth, width, heads, mlp_width,
            scan=scan, remat=remat, residual_dtype=residual_dtype, attention=attention,
            variant=variant, **options,
        )  # fmt: skip
        self.norm = layer_norm(width, variant.epsilon, **options | {"dtype": residual_dtype})
        self.width = width
        self.residual_dtype = residual_dtype
