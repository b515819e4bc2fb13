"""A ViT of Flax Linen modules with big_vision's structure, used to verify exported files.

The Linen modules determine the shapes and most names of the parameters. A file is in big_vision's
layout if this network accepts the file and computes the features of the exported model.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from can_jax.models.backbones import Size


class Mlp(nn.Module):
    """The MLP of a block; the layers of the MLP have Linen's default names."""

    width: int
    approximate: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:  # noqa: D102
        hidden = nn.gelu(nn.Dense(4 * self.width, name="Dense_0")(x), approximate=self.approximate)
        return nn.Dense(self.width, name="Dense_1")(hidden)


class Block(nn.Module):
    """A pre-norm transformer block: attention and MLP, each after its LayerNorm."""

    heads: int
    approximate: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:  # noqa: D102
        attention = nn.MultiHeadDotProductAttention(
            self.heads, name="MultiHeadDotProductAttention_0"
        )
        x = x + attention(nn.LayerNorm(name="LayerNorm_0")(x))
        mlp = Mlp(x.shape[-1], self.approximate, name="MlpBlock_0")
        return x + mlp(nn.LayerNorm(name="LayerNorm_1")(x))


class Transformer(nn.Module):
    """The transformer blocks and the final LayerNorm."""

    depth: int
    heads: int
    approximate: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:  # noqa: D102
        for i in range(self.depth):
            x = Block(self.heads, self.approximate, name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class ViT(nn.Module):
    """A ViT that returns the tokens of images; the class token comes first.

    The class token gets no position embedding.
    """

    width: int
    depth: int
    heads: int
    patch_size: int
    approximate: bool

    @nn.compact
    def __call__(self, pixels: Any) -> Any:  # noqa: D102
        patch = (self.patch_size, self.patch_size)
        embed = nn.Conv(self.width, patch, strides=patch, padding="VALID", name="embedding")
        x = embed(pixels).reshape(len(pixels), -1, self.width)
        x = x + self.param("pos_embedding", nn.initializers.zeros, (1, *x.shape[1:]))
        first = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(first, (len(x), 1, 1)), x], axis=1)
        return Transformer(self.depth, self.heads, self.approximate, name="Transformer")(x)


def encode(
    arrays: dict[str, np.ndarray],
    pixels: Float[np.ndarray, "images height width channels"],
    size: Size,
    patch_size: int,
    *,
    approximate: bool,
) -> Float[np.ndarray, "images tokens units"]:
    """Return the tokens of normalized images.

    Args:
        arrays: The arrays of the exported file, by name, such as ``params/cls``.
        pixels: The normalized images as floats, channels last.
        size: The width, depth and number of heads of the encoder.
        patch_size: The side of a patch in pixels.
        approximate: Whether to use the tanh approximation of GELU, as big_vision does.

    Raises:
        KeyError: An array is missing or unexpected.
        ValueError: An array has a wrong shape.
    """
    network = ViT(size.width, size.depth, size.heads, patch_size, approximate)
    wanted = jax.eval_shape(network.init, jax.random.key(0), pixels)
    if wrong := sorted(arrays.keys() ^ flatten_dict(wanted, sep="/").keys()):
        raise KeyError(wrong[0])
    variables = unflatten_dict(arrays, sep="/")
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(network.apply)(variables, pixels))
