"""The decoder, which predicts the pixels of masked patches and the noise of visible patches."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from can_jax.distributed.mesh import constrain_batch_sharding
from can_jax.models.encoder import sincos_2d
from can_jax.models.vit import Linear, Transformer


class Decoded(NamedTuple):
    """The outputs of the decoder.

    Attributes:
        tokens: The tokens after the final LayerNorm, class token first.
        prediction: The predicted pixels or noise of each patch; None if the decoder has no output
            layer for pixels.
    """

    tokens: Float[Array, "rows tokens width"]
    prediction: Float[Array, "rows patches pixels"] | None


class Decoder(Transformer):
    """A decoder as in MAE (arXiv 2111.06377): a small transformer over the tokens of all patches.

    The decoder's input consists of the encoder's output tokens and a learned mask token for each
    masked patch.

    Args:
        encoder_width: The width of the encoder's output tokens.
        pixels: The number of pixel values per patch, over all channels.
        width: The width of the decoder's residual stream.
        depth: The number of transformer blocks.
        heads: The number of attention heads per block.
        mlp_width: The width of the hidden layer of each MLP.
        level_tokens: The patch tokens to which the noise-level embedding is added: ``all`` or
            ``visible``.
        zero_output: Whether the kernel of the output layer for pixels is initialized to zero.
        noise_output: Whether a separate output layer, initialized to zero, predicts the noise of
            visible patches.
        predicts: Whether to build the output layer for pixels; if False, the decoder returns only
            tokens.
        rngs: The `nnx.Rngs` for the initialization.
        dtype: The dtype of activations and matrix products.
        param_dtype: The dtype of the parameters.
        **run: Further keyword arguments of `can_jax.models.vit.Transformer`.
    """

    def __init__(
        self,
        encoder_width: int,
        pixels: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        *,
        level_tokens: str,
        zero_output: bool = False,
        noise_output: bool = False,
        predicts: bool = True,
        rngs: nnx.Rngs,
        dtype: Any,
        param_dtype: Any,
        **run: Any,
    ):
        options = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.embed = Linear(encoder_width, width, **options)
        normal = nnx.initializers.normal(0.02)
        self.mask_token = nnx.Param(normal(rngs.params(), (width,), param_dtype))
        super().__init__(width, depth, heads, mlp_width, **run, **options)
        self.predict = Linear(width, pixels, zero=zero_output, **options) if predicts else None
        self.predict_noise = Linear(width, pixels, zero=True, **options) if noise_output else None
        self.level_tokens = level_tokens

    def __call__(
        self,
        latent: Float[Array, "rows tokens encoder_width"],
        shuffle: Int[Array, "rows patches"],
        grid: tuple[int, int],
        level: Float[Array, "rows encoder_width"] | None = None,
    ) -> Decoded:
        """Predict the pixels of each masked patch and the noise of each visible patch.

        Without ``noise_output``, one output layer predicts both pixels and noise.

        Args:
            latent: The encoder's output tokens: the class token, then the visible patches.
            shuffle: A permutation of the patch indices for each view, with the visible patches
                first.
            grid: The number of patches along (height, width).
            level: The noise-level embedding of each view; None if the decoder is not conditioned on
                the noise level. If ``level_tokens`` is ``visible``, the embedding is added to the
                input tokens of the visible patches. If ``level_tokens`` is ``all``, as in the
                figure of arXiv 2210.16870, the embedding is multiplied by the input layer's kernel
                and added to all patch tokens.
        """
        if level is not None and self.level_tokens == "visible":
            latent = latent.at[:, 1:].add(level[:, None].astype(latent.dtype))
        tokens = self.embed(latent).astype(self.residual_dtype)
        rows, _, width = tokens.shape
        patches = shuffle.shape[1]
        hidden = patches - (tokens.shape[1] - 1)
        mask_token = self.mask_token[...].astype(tokens.dtype)
        mask_tokens = jnp.broadcast_to(mask_token, (rows, hidden, width))
        shuffled = jnp.concatenate([tokens[:, 1:], mask_tokens], axis=1)
        # Undo the shuffle: patch p of the grid is at index restore[p] of the shuffled tokens.
        restore = jnp.argsort(shuffle, axis=1)
        patch_tokens = jnp.take_along_axis(shuffled, restore[:, :, None], axis=1)
        if level is not None and self.level_tokens == "all":
            kernel = self.embed.kernel[...].astype(tokens.dtype)
            patch_tokens = patch_tokens + (level.astype(tokens.dtype) @ kernel)[:, None]
        patch_tokens = patch_tokens + jnp.asarray(sincos_2d(grid, width), tokens.dtype)
        x = constrain_batch_sharding(jnp.concatenate([tokens[:, :1], patch_tokens], axis=1))
        x = self.norm(self.blocks(x))
        if self.predict is None:
            return Decoded(x, None)
        prediction = self.predict(x)[:, 1:]
        if self.predict_noise is not None:
            visible = (restore < patches - hidden)[:, :, None]
            prediction = jnp.where(visible, self.predict_noise(x)[:, 1:], prediction)
        return Decoded(x, prediction)
