"""The heads without a transformer: the contrastive projector and the noise-level embedding."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from can_jax.models.positions import sincos_level
from can_jax.models.vit import Linear


class Projector(nnx.Module):
    """An MLP with ReLU, and optionally BatchNorm, between its linear layers.

    BatchNorm's statistics are over all given rows; under a mesh, over the rows of all devices. A
    layer before BatchNorm has no bias, since the normalization would remove it.

    Args:
        inputs: The width of a row.
        hidden: The width of all layers but the last.
        outputs: The width of the last layer.
        layers: The number of linear layers.
        batch_norm: Whether BatchNorm follows each layer but the last.
        final_norm: Whether BatchNorm without bias follows the last layer, as in
            google-research/simclr.
        **options: The types and the random numbers of each layer.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        layers: int,
        batch_norm: bool,
        final_norm: bool,
        **options: Any,
    ):
        self.dtype = options["dtype"]
        widths = [inputs] + [hidden] * (layers - 1) + [outputs]
        normed = [batch_norm] * (layers - 1) + [final_norm]
        self.layers = nnx.List(
            Linear(widths[i], widths[i + 1], use_bias=not normed[i], **options)
            for i in range(layers)
        )
        options |= {"momentum": 0.9, "use_fast_variance": False}
        self.norms = nnx.List(
            nnx.BatchNorm(hidden, **options) for _ in range(layers - 1 if batch_norm else 0)
        )
        self.final_norm = nnx.BatchNorm(outputs, use_bias=False, **options) if final_norm else None

    def __call__(
        self, x: Float[Array, "rows width"], *, train: bool
    ) -> Float[Array, "rows outputs"]:
        """Project rows.

        Args:
            x: The rows.
            train: Whether BatchNorm uses the statistics of these rows and updates its running ones.
        """
        x = x.astype(self.dtype)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < len(self.norms):
                x = self.norms[i](x, use_running_average=not train)
            if i < len(self.layers) - 1:
                x = jax.nn.relu(x)
        return x if self.final_norm is None else self.final_norm(x, use_running_average=not train)


class NoiseLevel(nnx.Module):
    """A 2-layer MLP over sinusoids of sigma, on which the decoder is conditioned.

    Args:
        width: The encoder's width, which the embedding shares.
        scale: The factor on sigma before the sinusoids. At 1.0, the literal form, a sigma of at
            most 0.05 turns every angle by at most 0.05 rad, and the embedding is nearly constant.
    """

    def __init__(self, width: int, scale: float, **options: Any):
        self.hidden = Linear(width, width, **options)
        self.out = Linear(width, width, **options)
        self.width = width
        self.scale = scale

    def sinusoid(self, sigma: Float[Array, " rows"]) -> Float[Array, "rows width"]:
        """Return the fixed sinusoidal features of sigma that the MLP reads."""
        return sincos_level(sigma * jnp.asarray(self.scale, sigma.dtype), self.width)

    def __call__(self, sigma: Float[Array, " rows"]) -> Float[Array, "rows width"]:
        """Embed the noise level of each row."""
        return self.out(jax.nn.relu(self.hidden(self.sinusoid(sigma))))
