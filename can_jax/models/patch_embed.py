"""Patch embeddings in which a fixed linear map whitens the patches before the learned layer.

The covariance of image patches is ill-conditioned: a few smooth patterns hold nearly all of the
variance, and noise dominates the other patterns. A learned embedding alone transmits too little of
the patterns with low variance. Therefore a fixed map ``x -> (x - mean) @ map`` precedes the
embedding, where ``map`` is the inverse square root of a covariance. `whitening` uses the measured
covariance of the data. `dct_scaling` uses the covariance in a statistical model of natural images.

The fixed map is not trained. Checkpoints store the fixed map beside the running statistics of
BatchNorm. Since the fixed map and the learned embedding are linear, `fold` can merge them into one
ordinary patch embedding.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from can_jax.models.ops import linear_product
from can_jax.models.vit import Linear

PATCH_EMBEDS = ("auto", "linear", "whitened", "dct")
# The lower bound of `noise_floor`, in squared normalized pixel values. The rounding of pixels and
# JPEG cause about this variance, a standard deviation of about 1.4 of 255 gray levels.
FLOOR = 5e-4
SPATIAL, SPECTRAL = 0.95, 0.93  # correlations of adjacent pixels, and of color channels

Pixels = Float[np.ndarray, " pixels"]
Square = Float[np.ndarray, "pixels pixels"]


class InputMap(NamedTuple):
    """A fixed affine map of flattened patches, ``x -> (x - mean) @ map``."""

    mean: Pixels
    map: Square


def predicts_noise(config: ConfigDict) -> bool:
    """Return whether noise is added to the images and the denoising objective has a nonzero
    weight."""
    return bool(config.noise.sigma_max and config.objective.denoising.weight)


def embedding_kind(config: ConfigDict) -> str:
    """Return the kind of the patch embedding: ``linear``, ``whitened`` or ``dct``.

    ``auto`` selects ``whitened`` for a Vision Transformer that predicts noise, and ``linear`` for
    any other network.
    """
    if config.model.patch_embed != "auto":
        return config.model.patch_embed
    return "whitened" if predicts_noise(config) and config.model.backbone == "vit" else "linear"


def noise_floor(sigma_max: float) -> float:
    """Return the variance to add to the diagonal of a patch covariance: the mean noise variance,
    but at least `FLOOR`.

    Args:
        sigma_max: The largest noise level; the standard deviation of the noise is drawn uniformly
            from [0, sigma_max].
    """
    return max(sigma_max**2 / 3, FLOOR)


def inverse_root(covariance: Square, floor: float) -> Square:
    """Return the symmetric matrix ``(covariance + floor * I) ** -0.5``, in float64.

    Unlike PCA whitening, the result does not depend on the signs and the order of eigenvectors.
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    return (vectors * (np.maximum(values, 0) + floor) ** -0.5) @ vectors.T


def whitening(mean: Pixels, covariance: Square, floor: float) -> InputMap:
    """Return the map that whitens noisy patches, given the mean and covariance of the patches
    without noise, and the variance ``floor`` of the noise."""
    return InputMap(np.asarray(mean, np.float64), inverse_root(covariance, floor))


def dct_scaling(patch_size: int, channels: int, floor: float) -> InputMap:
    """Return the map that scales the 3-D DCT coefficients of a patch to equal variance, assuming a
    statistical model of natural images.

    In the statistical model, pixels at a distance d along a spatial axis have correlation
    ``SPATIAL ** d``, as is common in image coding. Different channels of a pixel have correlation
    ``SPECTRAL`` in the statistical model. For CIFAR-10 patches of 4 x 4 pixels, the map lowers the
    condition number of the covariance from 4e4 to 48.

    Args:
        patch_size: The side length of a patch in pixels.
        channels: The number of channels of the images.
        floor: The noise variance to add to the variance of each DCT coefficient.
    """
    distance = np.abs(np.subtract.outer(np.arange(patch_size), np.arange(patch_size)))
    bases = [dct(patch_size), dct(patch_size), dct(channels)]
    spatial, spectral = SPATIAL**distance, np.where(np.eye(channels), 1.0, SPECTRAL)
    variances = [
        np.diag(basis @ correlations @ basis.T)
        for basis, correlations in zip(bases, (spatial, spatial, spectral), strict=True)
    ]
    basis = functools.reduce(np.kron, bases)
    scale = (functools.reduce(np.kron, variances) + floor) ** -0.5
    return InputMap(np.zeros(len(basis)), (basis.T * scale) @ basis)


def dct(size: int) -> Float[np.ndarray, "size size"]:
    """Return the orthonormal matrix of the discrete cosine transform (DCT-II), one basis vector per
    row."""
    frequency, position = np.arange(size)[:, None], np.arange(size)[None]
    basis = np.sqrt(2 / size) * np.cos(np.pi * (position + 0.5) * frequency / size)
    basis[0] /= np.sqrt(2)
    return basis


class PatchEmbed(Linear):
    """A learned linear patch embedding with a fixed linear map before it.

    The fixed map is multiplied by the kernel of the learned embedding, in float32 or wider, and the
    patches are multiplied by the product. The cost of the fixed map therefore does not depend on
    the number of patches.

    Args:
        inputs: The number of pixel values per patch, over all channels.
        outputs: The width of an output token.
        start: The initial value of the fixed map. For the kind ``whitened``, a new run replaces the
            initial map by a map computed from its training images.
        **options: The ``dtype``, ``param_dtype`` and ``rngs`` of the layer.
    """

    def __init__(self, inputs: int, outputs: int, *, start: InputMap, **options: Any):
        super().__init__(inputs, outputs, **options)
        self.map_mean, self.map = (
            nnx.BatchStat(jnp.asarray(array, options["param_dtype"])) for array in start
        )

    def __call__(
        self, inputs: Float[Array, "*batch inputs"], out_sharding: Any = None
    ) -> Float[Array, "*batch outputs"]:
        """Apply the fixed map and the learned embedding to flattened patches."""
        assert self.bias is not None
        dot = functools.partial(jnp.matmul, precision="highest")
        kernel = dot(self.map[...], self.kernel[...])
        bias = self.bias[...] - dot(self.map_mean[...], kernel)
        tokens = linear_product(inputs.astype(self.dtype), kernel.astype(self.dtype))
        return tokens + bias.astype(self.dtype)


def patch_embedding(config: ConfigDict, pixels: int) -> Any:
    """Return the function ``(inputs, outputs, **options)`` that builds the patch embedding.

    The fixed map of a ``whitened`` embedding is initialized to the identity. In a new run, a
    map computed from the training images replaces the identity map.
    """
    kind = embedding_kind(config)
    if kind == "linear":
        return Linear
    start = InputMap(np.zeros(pixels), np.eye(pixels))
    if kind == "dct":
        floor = noise_floor(config.noise.sigma_max)
        start = dct_scaling(config.model.patch_size, config.data.channels, floor)
    return functools.partial(PatchEmbed, start=start)


def fixed_map(statistics: Any) -> InputMap | None:
    """Return the fixed map from the batch statistics of a network, in float64; None if the network
    has no fixed map."""
    stored = statistics.get("encoder", {}).get("patch_embed")
    if stored is None:
        return None
    return InputMap(*(np.asarray(stored[name], np.float64) for name in ("map_mean", "map")))


def fold(parameters: Any, statistics: Any) -> tuple[Any, Any]:
    """Merge the fixed map into the learned patch embedding, which becomes an ordinary linear layer.

    Args:
        parameters: The parameters of a network, as a nested dict.
        statistics: The batch statistics of the network, which hold the fixed map, if any.

    Returns:
        The parameters and the batch statistics of an equivalent network with
        ``model.patch_embed="linear"``.
    """
    fixed = fixed_map(statistics)
    if fixed is None:
        return parameters, statistics
    encoder = parameters["encoder"]
    old = encoder["patch_embed"]
    kernel = fixed.map @ np.asarray(old["kernel"], np.float64)
    bias = np.asarray(old["bias"], np.float64) - fixed.mean @ kernel
    new = {"kernel": kernel.astype(old["kernel"].dtype), "bias": bias.astype(old["bias"].dtype)}
    rest = {name: tree for name, tree in statistics.items() if name != "encoder"}
    return parameters | {"encoder": encoder | {"patch_embed": new}}, rest


def unfold(
    kernel: Float[np.ndarray, "pixels width"], bias: Float[np.ndarray, " width"], fixed: InputMap
) -> tuple[Float[np.ndarray, "pixels width"], Float[np.ndarray, " width"]]:
    """Return the kernel and bias that, combined with a fixed map, are equivalent to an ordinary
    patch embedding.

    `unfold` is the inverse of `fold`.

    Args:
        kernel, bias: The parameters of the ordinary patch embedding.
        fixed: The fixed map that the network applies before the returned kernel and bias.
    """
    plain = np.asarray(kernel, np.float64)
    return np.linalg.solve(fixed.map, plain), np.asarray(bias, np.float64) + fixed.mean @ plain
