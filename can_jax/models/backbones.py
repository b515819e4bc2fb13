"""The registry of encoders from which `model.backbone` selects, and the sizes of the Vision
Transformer.

To add a backbone, register a `BackboneType` in a recipe or in a module that ``--modules`` names;
see docs/extend.md.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from can_jax.models.encoder import Encoder
from can_jax.models.masking import patch_grid
from can_jax.models.patch_embed import patch_embedding
from can_jax.models.variant import PLAIN, variant_of
from can_jax.utils.errors import UserError
from can_jax.utils.registry import Registry

Patches = Float[Array, "rows visible pixels"]
Positions = Int[Array, "rows visible"]
Tokens = Float[Array, "rows visible+1 width"]


@runtime_checkable
class Backbone(Protocol):
    """The interface of an encoder: a `flax.nnx.Module` that encodes a subset of the patches.

    Attributes:
        width: The number of features of an output token.
    """

    width: int

    def __call__(self, patches: Patches, index: Positions, grid: tuple[int, int]) -> Tokens:
        """Encode patches to tokens.

        The first output token is a class token or another summary of the image.

        Args:
            patches: The pixels of the visible patches, to which noise may have been added.
            index: The row-major index of each visible patch in the grid of patches.
            grid: The number of patches of the whole image along (height, width).
        """
        ...


def _accept(_: Any) -> None:
    """Accept any configuration."""


@dataclasses.dataclass(frozen=True)
class BackboneType:
    """A registered kind of encoder, which `model.backbone` selects by name.

    Attributes:
        build: A function ``build(config, pixels, **options)`` that builds the encoder. ``config``
            is the complete configuration, and ``pixels`` is the number of pixel values per patch.
            The options are ``dtype``, ``param_dtype`` and ``rngs``, as for a layer of `flax.nnx`.
        flops: A function ``flops(config, pixels, visible)`` that returns the FLOPs of the forward
            pass for one view with ``visible`` unmasked patches. A multiply-add counts as 2 FLOPs.
        check: A function that takes the configuration, and raises `UserError` if the encoder cannot
            be built with it.
    """

    build: Callable[..., Any]
    flops: Callable[[Any, int, int], int]
    check: Callable[[Any], None] = _accept


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a transformer.

    The hidden layer of each MLP is 4 times as wide as the residual stream.

    Attributes:
        width: The width of the residual stream.
        depth: The number of transformer blocks.
        heads: The number of attention heads per block.
    """

    width: int
    depth: int
    heads: int

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that set the size of a `can_jax.models.vit.Transformer`."""
        return dataclasses.asdict(self) | {"mlp_width": 4 * self.width}

    def check(self, name: str) -> None:
        """Check that the number of heads divides the width.

        Args:
            name: The name of the config block that sets the size, such as `model`. The error
                message contains this name.

        Raises:
            UserError: The number of heads does not divide the width.
        """
        if self.width % self.heads:
            raise UserError(
                f"config.{name}.heads={self.heads} does not divide {name}.width={self.width}"
            )

    def flops(self, tokens: int) -> int:
        """Return the FLOPs of the forward pass of all blocks, for one sequence of ``tokens``
        tokens.

        For t tokens of width D, the result is ``depth * (24 t D^2 + 4 t^2 D)``.
        """
        return self.depth * (24 * tokens * self.width**2 + 4 * tokens**2 * self.width)


SIZES = {
    "Ti": Size(192, 12, 3),
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "H": Size(1280, 32, 16),
}


def encoder_size(model: Any) -> Size:
    """Return the size of the encoder: the preset ``model.size``, with overrides from ``width``,
    ``depth`` and ``heads``."""
    size = SIZES[model.size]
    names = ("width", "depth", "heads")
    overrides = {name: model[name] for name in names if model[name] is not None}
    return dataclasses.replace(size, **overrides)


def decoder_size(model: Any) -> Size:
    """Return the size of the decoder from the config block `model`."""
    decoder = model.decoder
    return Size(decoder.width, decoder.depth, decoder.heads)


def compute_options(model: Any) -> dict[str, Any]:
    """Return the keyword arguments of `can_jax.models.vit.Transformer`, such as ``remat``, that set
    how the blocks are computed."""
    return {
        "scan": model.scan,
        "attention": model.attention,
        "remat": model.remat,
        "residual_dtype": jnp.dtype(model.residual_dtype or model.dtype),
    }


def vit(config: Any, pixels: int, **options: Any) -> Encoder:
    """Build the Vision Transformer (arXiv 2010.11929) that a configuration describes."""
    size, variant = encoder_size(config.model).arguments, variant_of(config.model)
    if variant != PLAIN:
        options |= {"variant": variant, "grid": position_grid(config)}
    options |= compute_options(config.model) | {"embed": patch_embedding(config, pixels)}
    return Encoder(pixels, **size, **options)


def position_grid(config: Any) -> tuple[int, int]:
    """Return the (height, width) of the grid of learned position embeddings, in patches."""
    stored = variant_of(config.model).position_grid
    return stored or patch_grid(config.data.image_size, config.model.patch_size)


def keep_position_grid(config: Any) -> None:
    """Write the size of the grid of learned position embeddings into the given configuration.

    A later change of the image size then does not change the grid. A configuration without learned
    position embeddings is left unchanged.
    """
    if config.model.backbone == "vit" and variant_of(config.model).positions == "learned":
        options = dict(config.model.backbone_options) | {"position_grid": position_grid(config)}
        config.model.backbone_options = tuple(options.items())


def vit_flops(config: Any, pixels: int, visible: int) -> int:
    """Return the FLOPs of the Vision Transformer's forward pass for one view with ``visible``
    unmasked patches of ``pixels`` values each."""
    size = encoder_size(config.model)
    return (
        size.flops(visible + 1 + variant_of(config.model).registers)
        + 2 * visible * pixels * size.width
    )


def check_vit(config: Any) -> None:
    """Check the architecture options, the width and the number of heads of the Vision Transformer.

    Raises:
        UserError: The number of heads does not divide the width, or an option is invalid.
    """
    variant_of(config.model)
    encoder_size(config.model).check("model")


BACKBONES: Registry[BackboneType] = Registry("backbone")
BACKBONES.register("vit", BackboneType(vit, vit_flops, check_vit))


def build_backbone(config: Any, pixels: int, **options: Any) -> Any:
    """Build the encoder that a configuration selects.

    Raises:
        UserError: No backbone has the configured name, or the backbone's function ``build`` does
            not return a `flax.nnx.Module` with the interface `Backbone`.
    """
    name = config.model.backbone
    backbone = BACKBONES.get(name).build(config, pixels, **options)
    if not isinstance(backbone, nnx.Module) or not isinstance(backbone, Backbone):
        raise UserError(
            f"config.model.backbone={name!r} builds a {type(backbone).__name__}: a backbone must "
            "be a flax.nnx.Module with an attribute `width` and a method "
            "`__call__(patches, index, grid)`"
        )
    return backbone


def encoder_width(config: Any) -> int:
    """Return the number of features of an encoder token."""
    if config.model.backbone == "vit":
        return encoder_size(config.model).width
    options = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    pixels = config.model.patch_size**2 * config.data.channels
    abstract = nnx.eval_shape(lambda: build_backbone(config, pixels, **options, rngs=nnx.Rngs(0)))
    width: int = abstract.width
    return width


def describe(config: Any) -> dict[str, Any]:
    """Return the size and options of the encoder as a dict, for result files."""
    options = dict(config.model.backbone_options)
    if config.model.backbone == "vit":
        return dataclasses.asdict(encoder_size(config.model)) | options
    return {"backbone": config.model.backbone, "width": encoder_width(config), **options}


def require_vit(config: Any, purpose: str) -> None:
    """Check that the backbone is the Vision Transformer; ``purpose`` names the feature that
    requires it.

    Raises:
        UserError: The configuration has another backbone.
    """
    if config.model.backbone != "vit":
        raise UserError(
            f"config.model.backbone={config.model.backbone!r}: only 'vit' supports {purpose}"
        )
