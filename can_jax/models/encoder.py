"""The Vision Transformer that encodes the visible patches, with a class token and position
embeddings."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from can_jax.distributed.mesh import constrain_batch_sharding
from can_jax.models.variant import PLAIN, Variant
from can_jax.models.vit import Linear, Transformer, layer_norm


class Encoder(Transformer):
    """A ViT encoder that processes a class token and a subset of the patches of an image.

    Args:
        pixels: The number of pixel values per patch, over all channels.
        width: The width of the residual stream.
        depth: The number of transformer blocks.
        heads: The number of attention heads per block.
        mlp_width: The width of the hidden layer of each MLP.
        embed: A function of (pixels, width, **options) that builds the patch embedding layer.
        rngs: The `nnx.Rngs` for the initialization.
        dtype: The dtype of activations and matrix products.
        param_dtype: The dtype of the parameters.
        variant: The architecture options, by default those of MAE.
        grid: The (height, width) of the grid of learned position embeddings, in patches; None if
            the position embeddings are fixed.
        **run: Further keyword arguments of `Transformer`.
    """

    def __init__(
        self,
        pixels: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        *,
        embed: Callable[..., Linear] = Linear,
        rngs: nnx.Rngs,
        dtype: Any,
        param_dtype: Any,
        variant: Variant = PLAIN,
        grid: tuple[int, int] | None = None,
        **run: Any,
    ):
        options = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        normal = nnx.initializers.normal(0.02)
        self.patch_embed = embed(pixels, width, **options)
        token = normal(rngs.params(), (width,), param_dtype)
        self.class_token = nnx.Param(token)
        self.variant, self.position_grid = variant, grid
        if variant.positions == "learned":
            assert grid is not None, "learned positions require the argument grid"
            shape = (grid[0] * grid[1], width)
            self.positions = nnx.Param(normal(rngs.params(), shape, param_dtype))
        if variant.registers:
            shape = (variant.registers, width)
            self.registers = nnx.Param(normal(rngs.params(), shape, param_dtype))
        if variant.pre_norm:
            wide = options | {"dtype": run["residual_dtype"]}
            self.pre_norm = layer_norm(width, variant.epsilon, **wide)
        super().__init__(width, depth, heads, mlp_width, variant=variant, **run, **options)

    def positions_of(self, grid: tuple[int, int]) -> Float[Array, "patches width"]:
        """Return the position embedding of each patch of a grid.

        Learned position embeddings are resized to the grid.
        """
        if self.variant.positions == "sincos":
            return jnp.asarray(sincos_2d(grid, self.width), self.residual_dtype)
        assert self.position_grid is not None
        table = resized_positions(self.positions[...], self.position_grid, grid)
        return table.astype(self.residual_dtype)

    def __call__(
        self,
        patches: Float[Array, "rows visible pixels"],
        index: Int[Array, "rows visible"],
        grid: tuple[int, int],
        *,
        drop: Float[Array, "depth rows 2"] | None = None,
        norm: bool = True,
    ) -> Float[Array, "rows visible+1 width"]:
        """Encode patches, and return the output tokens, class token first.

        Args:
            patches: The pixels of the visible patches of each view.
            index: The row-major index of each visible patch in the grid of patches.
            grid: The number of patches of the whole image along (height, width).
            drop: The factors that `drop_path` returns; None disables stochastic depth.
            norm: Whether to apply the final LayerNorm to the tokens. With the architecture option
                ``norm="pooled"``, the argument ``norm`` has no effect, since the LayerNorm follows
                the pooling.
        """
        tokens = self.patch_embed(patches).astype(self.residual_dtype)
        rows, _, width = tokens.shape
        tokens = tokens + self.positions_of(grid)[index]
        class_token = self.class_token[...].astype(tokens.dtype)
        first = [jnp.broadcast_to(class_token, (rows, 1, width))]
        if count := self.variant.registers:
            registers = self.registers[...].astype(tokens.dtype)
            first.append(jnp.broadcast_to(registers, (rows, count, width)))
        x = constrain_batch_sharding(jnp.concatenate([*first, tokens], axis=1))
        x = self.blocks(self.pre_norm(x) if self.variant.pre_norm else x, drop)
        if count:
            x = jnp.concatenate([x[:, :1], x[:, 1 + count :]], axis=1)
        return self.norm(x) if norm and self.variant.norm == "tokens" else x


@functools.lru_cache(maxsize=16)
def sincos_2d(grid: tuple[int, int], width: int) -> Float[np.ndarray, "patches width"]:
    """Return fixed sin-cos position embeddings of a (height, width) grid of patches in row-major
    order.

    The embeddings have the layout of MAE's code (arXiv 2111.06377). The first half of an embedding
    encodes the column of the patch, and the second half encodes the row. Each half holds all sines,
    then all cosines, at the frequencies ``10000 ** (-i / (width / 4))``. The result has no
    embedding for the class token.

    Raises:
        ValueError: ``width`` is not divisible by 4.
    """
    if width % 4:
        raise ValueError(f"2-D sin-cos positions require a width divisible by 4, got {width}")
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width / 4))

    def encode(coordinate: np.ndarray) -> np.ndarray:
        angles = coordinate.reshape(-1, 1) * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    # MAE's weight files store the table in float32. Due to the same rounding here, the two tables
    # also agree in float64.
    table = np.concatenate([encode(columns), encode(rows)], axis=1).astype(np.float32)
    table.flags.writeable = False  # the cache hands the same array to every caller
    return table


def positions_with_class(grid: tuple[int, int], width: int) -> Float[np.ndarray, "tokens width"]:
    """Return the embeddings of `sincos_2d`, preceded by a zero embedding for the class token, as in
    MAE's weight files."""
    table = sincos_2d(grid, width)
    return np.concatenate([np.zeros_like(table[:1]), table])


def resized_positions(
    table: Float[Array, "patches width"], grid: tuple[int, int], to: tuple[int, int]
) -> Float[Array, "resized width"]:
    """Resize learned position embeddings from one (height, width) grid of patches to another.

    The interpolation is bicubic with antialiasing, as in timm's `resample_abs_pos_embed`. If the
    grids are equal, the table is returned unchanged.
    """
    if grid == to:
        return table
    width = table.shape[1]
    shape = (*to, width)
    resized = jax.image.resize(table.reshape(*grid, width), shape, "cubic", antialias=True)
    return resized.reshape(-1, width)
