"""Heads that are MLPs: the contrastive projector and the noise-level embedding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from can_jax.models.vit import Linear


class Projector(nnx.Module):
    """An MLP for contrastive learning, with ReLU and optionally BatchNorm between its linear
    layers.

    BatchNorm computes its statistics over all input vectors, across all devices of the mesh. A
    linear layer before BatchNorm has no bias, since the normalization would cancel it.

    Args:
        inputs: The width of an input vector.
        hidden: The output width of all linear layers except the last.
        outputs: The output width of the last linear layer.
        layers: The number of linear layers.
        batch_norm: Whether BatchNorm follows each linear layer except the last.
        final_norm: Whether BatchNorm without bias follows the last linear layer, as in
            google-research/simclr.
        **options: The ``dtype``, ``param_dtype`` and ``rngs`` of each layer.
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
        """Project each input vector, for example a pooled embedding, to ``outputs`` values.

        Args:
            x: The input vectors, of shape (rows, inputs).
            train: True to normalize with the statistics of the batch and update the running
                statistics; False to use the running statistics.
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
    """An embedding of the noise level sigma for the decoder: sinusoidal features and a 2-layer MLP.

    Args:
        width: The width of the embedding, equal to the width of the encoder's tokens.
        scale: The factor by which sigma is multiplied before the sinusoids are computed. A scale of
            1.0 would make the embedding nearly constant: for sigma up to 0.05, no angle exceeds
            0.05 rad.
        **options: The ``dtype``, ``param_dtype`` and ``rngs`` of each layer.
    """

    def __init__(self, width: int, scale: float, **options: Any):
        self.hidden = Linear(width, width, **options)
        self.out = Linear(width, width, **options)
        self.width = width
        self.scale = scale

    def sinusoid(self, sigma: Float[Array, " rows"]) -> Float[Array, "rows width"]:
        """Return the sinusoidal features of the noise level sigma, which are the input of the
        MLP."""
        return sincos_level(sigma * jnp.asarray(self.scale, sigma.dtype), self.width)

    def __call__(self, sigma: Float[Array, " rows"]) -> Float[Array, "rows width"]:
        """Return the embedding of the noise level of each view."""
        return self.out(jax.nn.relu(self.hidden(self.sinusoid(sigma))))


def sincos_level(level: Float[Array, " rows"], width: int) -> Float[Array, "rows width"]:
    """Return the sines, then the cosines, of the angles ``level * 10000 ** (-i / (width / 2))``."""
    frequencies = 10000.0 ** (-np.arange(width // 2) / (width / 2))
    angles = level[:, None] * jnp.asarray(frequencies, level.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
