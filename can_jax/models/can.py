"""The network of CAN: one encoder, and the heads that the active objectives require."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from can_jax.models.backbones import build_backbone, compute_options, decoder_size
from can_jax.models.decoder import Decoder
from can_jax.models.heads import NoiseLevel
from can_jax.models.masking import patch_grid, patchify
from can_jax.models.patch_embed import predicts_noise

POOLS = ("patches", "all", "class")
LEVEL_TOKENS = ("all", "visible")


def pool(
    latent: Float[Array, "rows tokens width"], kind: str = "patches"
) -> Float[Array, "rows width"]:
    """Pool the tokens of each view to one embedding.

    Args:
        latent: The encoder's output tokens, class token first.
        kind: ``patches`` for the mean of the patch tokens, ``all`` for the mean of all tokens,
            ``class`` for the class token.
    """
    if kind == "class":
        return latent[:, 0]
    tokens = latent[:, 1:] if kind == "patches" else latent
    return tokens.mean(axis=1, dtype=jnp.promote_types(latent.dtype, jnp.float32))


class Forward(NamedTuple):
    """The outputs of one forward pass; ``noise_level``, ``prediction`` and ``decoded`` are None if
    not computed.

    Attributes:
        latent: The encoder's output tokens, class token first.
        pooled: The embedding of each view, pooled from the view's output tokens.
        noise_level: The embedding of each view's noise level, on which the decoder is conditioned.
        prediction: The decoder's prediction for each patch: the pixels of a masked patch, or the
            noise of a visible patch.
        decoded: The decoder's tokens before the output layers, class token first.
    """

    latent: Float[Array, "rows tokens width"]
    pooled: Float[Array, "rows width"]
    noise_level: Float[Array, "rows width"] | None
    prediction: Float[Array, "rows patches pixels"] | None
    decoded: Float[Array, "rows tokens decoder_width"] | None = None


HeadBuilder = Callable[..., nnx.Module]  # (config, width of the encoder, **options)


def build_decoder(config: ConfigDict, width: int, predicts: bool = True, **options: Any) -> Decoder:
    """Build the decoder that a configuration describes, for an encoder of the given width.

    Args:
        config: The complete configuration.
        width: The width of the encoder's output tokens.
        predicts: Whether to build the output layer for pixels.
        **options: The ``dtype``, ``param_dtype`` and ``rngs`` of each layer.
    """
    model = config.model
    return Decoder(
        width,
        pixels_per_patch(config),
        **decoder_size(model).arguments,
        level_tokens=config.noise.level_tokens,
        zero_output=model.decoder.zero_output,
        noise_output=has_noise_output(config),
        predicts=predicts,
        **compute_options(model),
        **options,
    )


def has_noise_output(config: ConfigDict) -> bool:
    """Return whether the decoder has a second output layer, which predicts the noise.

    Without the denoising objective, the second layer would get no gradient, so it is not built.
    """
    return predicts_noise(config) and config.model.decoder.noise_output


def build_noise_level(config: ConfigDict, width: int, **options: Any) -> NoiseLevel:
    """Build the noise-level embedding that a configuration describes, for an encoder of the given
    width."""
    return NoiseLevel(width, level_scale(config), **options)


BUILDERS: dict[str, HeadBuilder] = {"noise_level": build_noise_level, "decoder": build_decoder}


class CAN(nnx.Module):
    """An encoder with the heads that the active objectives require.

    In the forward pass, the views of a batch do not interact. Each head is an attribute of the
    network. `__call__` runs the heads ``decoder`` and ``noise_level``; the objectives call the
    other heads.

    Args:
        config: The resolved configuration.
        heads: A mapping from attribute names to the functions that build the heads.
        rngs: The `nnx.Rngs` for the initialization, which must hold the stream ``params``.

    Raises:
        ValueError: A head has the name of another attribute of the network.
    """

    def __init__(self, config: ConfigDict, heads: Mapping[str, HeadBuilder], rngs: nnx.Rngs):
        self.pool = config.objective.contrastive.pool
        self.patch_size = config.model.patch_size
        self.dtype = jnp.dtype(config.model.dtype)
        options = {**layer_options(config), "rngs": rngs}
        self.encoder = build_backbone(config, pixels_per_patch(config), **options)
        for name, build_head in heads.items():
            if hasattr(self, name):
                raise ValueError(
                    f"the head {name!r} has the name of another attribute of the network"
                )
            setattr(self, name, build_head(config, self.encoder.width, **options))

    def __call__(
        self,
        patches: Float[Array, "rows visible pixels"],
        shuffle: Int[Array, "rows patches"],
        sigma: Float[Array, " rows"] | None,
        *,
        grid: tuple[int, int],
        decode: bool = True,
    ) -> Forward:
        """Run the encoder and, if the network has one, the decoder.

        Args:
            patches: The pixels of the visible patches, with added noise, in the order of
                ``shuffle``.
            shuffle: A permutation of the patch indices for each view, with the visible patches
                first.
            sigma: The standard deviation of the noise in each view; None if the network has no
                noise-level embedding.
            grid: The number of patches along (height, width).
            decode: Whether to run the decoder, if the network has one.
        """
        visible = patches.shape[1]
        latent = self.encoder(patches.astype(self.dtype), shuffle[:, :visible], grid)
        pooled = pool(latent, self.pool)
        noise_level = prediction = decoded = None
        if decode and hasattr(self, "noise_level"):
            # Sigma stays float32: 8 significant bits of bfloat16 are too few for 1000 rad.
            assert sigma is not None, (
                "sigma is required, because this network has a noise-level embedding"
            )
            noise_level = self.noise_level(sigma)
        if decode and hasattr(self, "decoder"):
            decoded, prediction = self.decoder(latent, shuffle, grid, noise_level)
        return Forward(latent, pooled, noise_level, prediction, decoded)

    def encode(
        self, images: Float[Array, "rows height width channels"], **options: Any
    ) -> Float[Array, "rows tokens features"]:
        """Return the encoder's output tokens for unmasked images, class token first.

        Args:
            images: Images, normalized by the configured mean and standard deviation of each
                channel.
            **options: The keyword arguments ``drop`` and ``norm`` of
                `can_jax.models.encoder.Encoder.__call__`.
        """
        grid = patch_grid(images.shape[1:3], self.patch_size)
        patches = patchify(images, self.patch_size)
        index = jnp.broadcast_to(np.arange(patches.shape[1]), patches.shape[:2])
        return self.encoder(patches.astype(self.dtype), index, grid, **options)


def layer_options(config: ConfigDict) -> dict[str, Any]:
    """Return the ``dtype`` and ``param_dtype`` of a network's layers, according to
    ``model.dtype``."""
    dtype = jnp.dtype(config.model.dtype)
    return {"dtype": dtype, "param_dtype": jnp.promote_types(dtype, jnp.float32)}


def grid_of(config: ConfigDict) -> tuple[int, int]:
    """Return the number of patches along (height, width) of a training image."""
    return patch_grid(config.data.image_size, config.model.patch_size)


def pixels_per_patch(config: ConfigDict) -> int:
    """Return the number of pixel values per patch, over all channels."""
    return config.model.patch_size**2 * config.data.channels


def level_scale(config: ConfigDict) -> float:
    """Return ``noise.level_scale`` or, if it is None, the factor that scales noise levels to [0,
    1000]."""
    scale = config.noise.level_scale
    return 1000.0 / config.noise.sigma_max if scale is None else scale
