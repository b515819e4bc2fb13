"""The network of CAN: one encoder, and the heads that objectives with nonzero weight read."""

import dataclasses
from collections.abc import Set
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from can_jax.models.decoder import Decoder
from can_jax.models.heads import NoiseLevel, Projector
from can_jax.models.masking import patch_grid, patchify
from can_jax.models.vit import Encoder


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a transformer. The MLP width is always 4 times the width.

    Attributes:
        width: The width of the residual stream.
        depth: The number of blocks.
        heads: The number of attention heads.
    """

    width: int
    depth: int
    heads: int

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `can_jax.models.vit.Transformer` that set its size."""
        return dataclasses.asdict(self) | {"mlp_width": 4 * self.width}


SIZES = {
    "Ti": Size(192, 12, 3),
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "H": Size(1280, 32, 16),
}

HEADS = frozenset({"projection", "prediction", "noise_level"})
POOLS = ("patches", "all", "class")
LEVEL_TOKENS = ("all", "visible")


def pool(
    latent: Float[Array, "rows tokens width"], kind: str = "patches"
) -> Float[Array, "rows width"]:
    """Pool the tokens of each row to one vector.

    Args:
        latent: The encoder's output; the class token comes first.
        kind: `patches` for the mean of the patch tokens, `all` for the mean of all tokens, `class`
            for the class token.
    """
    if kind == "class":
        return latent[:, 0]
    tokens = latent[:, 1:] if kind == "patches" else latent
    return tokens.mean(axis=1, dtype=jnp.promote_types(latent.dtype, jnp.float32))


class Forward(NamedTuple):
    """The outputs of one forward pass; None for a head that was not built or not run."""

    latent: Float[Array, "rows tokens width"]
    pooled: Float[Array, "rows width"]
    projection: Float[Array, "rows outputs"] | None
    noise_level: Float[Array, "rows width"] | None
    prediction: Float[Array, "rows patches pixels"] | None


class CAN(nnx.Module):
    """An encoder with an optional projector, noise-level embedding and decoder.

    The rows of a batch are independent of each other, except in the BatchNorm of the projector.
    They may come in any order.

    Args:
        pixels: Pixel values per patch, all channels included.
        encoder: The size of the encoder.
        decoder: The size of the decoder; None to build none.
        projector: The options of `Projector`; None to build none.
        level_scale: The factor on sigma in the noise-level embedding; None to build none.
        level_tokens: The tokens that get the noise-level embedding; see `Decoder`.
        pool: The pooling of the tokens, one of `POOLS`.
        patch_size: The side of a patch in pixels.
        scan: Whether the blocks are compiled as a loop; see `can_jax.models.vit.Blocks`.
        remat: The rematerialization policy of a block, a key of `REMAT_POLICIES`.
        dtype: The type of activations and matrix products.
        residual_dtype: The type of the residual stream and the LayerNorms.
        param_dtype: The type of the parameters.
        rngs: The random numbers of the initialization, a ``params`` stream.
    """

    def __init__(
        self,
        *,
        pixels: int,
        encoder: Size,
        decoder: Size | None,
        projector: dict[str, Any] | None,
        level_scale: float | None,
        level_tokens: str,
        pool: str,
        patch_size: int,
        scan: bool,
        remat: str,
        dtype: Any,
        residual_dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        depth_options = {
            "scan": scan, "remat": remat, "residual_dtype": residual_dtype, **options
        }  # fmt: skip
        self.encoder = Encoder(pixels, **encoder.arguments, **depth_options)
        # Each attribute is assigned once, since nnx forbids a module where None was before.
        self.projector = Projector(encoder.width, **projector, **options) if projector else None
        self.noise_level = (
            None if level_scale is None else NoiseLevel(encoder.width, level_scale, **options)
        )
        self.decoder = (
            Decoder(
                encoder.width,
                pixels,
                **decoder.arguments,
                level_tokens=level_tokens,
                **depth_options,
            )
            if decoder
            else None
        )
        self.pool = pool
        self.patch_size = patch_size
        self.dtype = dtype

    def __call__(
        self,
        patches: Float[Array, "rows visible pixels"],
        shuffle: Int[Array, "rows patches"],
        sigma: Float[Array, " rows"] | None,
        *,
        grid: tuple[int, int],
        train: bool,
        heads: Set[str] = HEADS,
    ) -> Forward:
        """Run the encoder, and those of the requested heads that the network has.

        Args:
            patches: The visible patches, noise included, in the order of ``shuffle``.
            shuffle: A permutation of all patches per row; its first entries are the visible ones.
            sigma: The noise level of each row; unused without a noise-level embedding.
            grid: The number of patches along (height, width).
            train: Whether BatchNorm uses the statistics of this batch and updates its running ones.
            heads: A subset of `HEADS`; all by default.
        """
        visible = patches.shape[1]
        latent = self.encoder(patches.astype(self.dtype), shuffle[:, :visible], grid)
        pooled = pool(latent, self.pool)
        projection = noise_level = prediction = None
        if self.projector is not None and "projection" in heads:
            projection = self.project(pooled, train=train)
        if self.noise_level is not None and "noise_level" in heads:
            # Sigma stays float32: bf16 has 8 bits, too few for angles up to 1000 rad.
            assert sigma is not None, "sigma is required: this network embeds the noise level"
            noise_level = self.noise_level(sigma)
        if self.decoder is not None and "prediction" in heads:
            prediction = self.decoder(latent, shuffle, grid, noise_level)
        return Forward(latent, pooled, projection, noise_level, prediction)

    def project(
        self, pooled: Float[Array, "rows width"], *, train: bool
    ) -> Float[Array, "rows outputs"]:
        """Project the pooled embeddings of all rows to the space of the contrastive loss.

        Args:
            pooled: The pooled embeddings.
            train: Whether BatchNorm uses the statistics of these rows and updates its running ones.
        """
        assert self.projector is not None
        return self.projector(pooled.astype(self.dtype), train=train)

    def encode(
        self, images: Float[Array, "rows height width channels"], **options: Any
    ) -> Float[Array, "rows tokens features"]:
        """Return the encoder's tokens of whole images without masks or noise, class token first.

        Args:
            images: Normalized images.
            **options: The options of `Encoder`: ``drop`` and ``norm``.
        """
        grid = patch_grid(images.shape[1:3], self.patch_size)
        patches = patchify(images, self.patch_size)
        index = jnp.broadcast_to(np.arange(patches.shape[1]), patches.shape[:2])
        return self.encoder(patches.astype(self.dtype), index, grid, **options)


def encoder_size(model: ConfigDict) -> Size:
    """Return the size of the encoder: that of ``model.size``, with explicitly set values on top."""
    size = SIZES[model.size]
    own = {name: model[name] for name in ("width", "depth", "heads") if model[name] is not None}
    return dataclasses.replace(size, **own)


def grid_of(config: ConfigDict) -> tuple[int, int]:
    """Return the number of patches along (height, width) of a training image."""
    return patch_grid(config.data.image_size, config.model.patch_size)


def build(config: ConfigDict, heads: Set[str], rngs: nnx.Rngs) -> CAN:
    """Build the network of a configuration with the given heads.

    Args:
        config: The validated configuration.
        heads: A subset of `HEADS`, those that the active objectives read. No others are built.
        rngs: The random numbers of the initialization, a ``params`` stream.
    """
    model = config.model
    projector = model.projector.to_dict() if "projection" in heads else None
    return CAN(
        pixels=model.patch_size**2 * config.data.channels,
        encoder=encoder_size(model),
        decoder=Size(**model.decoder) if "prediction" in heads else None,
        projector=projector,
        level_scale=level_scale(config) if "noise_level" in heads else None,
        level_tokens=config.noise.level_tokens,
        pool=config.objective.contrastive.pool,
        patch_size=model.patch_size,
        scan=model.scan,
        remat=model.remat,
        dtype=jnp.dtype(model.dtype),
        residual_dtype=jnp.dtype(model.residual_dtype or model.dtype),
        param_dtype=jnp.promote_types(model.dtype, jnp.float32),
        rngs=rngs,
    )


def level_scale(config: ConfigDict) -> float:
    """Return ``noise.level_scale``; the default spreads sigma over [0, 1000]."""
    scale = config.noise.level_scale
    return 1000.0 / config.noise.sigma_max if scale is None else scale
