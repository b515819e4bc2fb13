"""Patch embeddings that follow a fixed linear map, which conditions their input.

The covariance of patches of natural images is ill-conditioned: a few smooth patterns hold nearly
all variance, while noise dominates the other patterns. A learned embedding passes the other
patterns on too weakly. Here a map ``x -> (x - mean) @ map``, the inverse square root of a
covariance, precedes the embedding. `whitening` takes the measured covariance of the data,
`dct_scaling` the covariance of a model of natural images.

The map is not trained. Checkpoints store it beside the running statistics of BatchNorm. Since the
map and the embedding are linear, `fold` merges them into one embedding of plain patches.
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
# The smallest variance added to each direction, in squared normalized pixels. It is that of
# rounding and JPEG, a standard deviation of about 1.4 of 255 gray levels.
FLOOR = 5e-4
SPATIAL, SPECTRAL = 0.95, 0.93  # correlations of adjacent pixels, and of color channels

Pixels = Float[np.ndarray, " pixels"]
Square = Float[np.ndarray, "pixels pixels"]


class InputMap(NamedTuple):
    """A fixed map of patches, ``x -> (x - mean) @ map``."""

    mean: Pixels
    map: Square


def predicts_noise(config: ConfigDict) -> bool:
    """Return whether the images get noise and the denoising objective predicts it."""
    return bool(config.noise.sigma_max and config.objective.denoising.weight)


def embedding_kind(config: ConfigDict) -> str:
    """Return the kind of the patch embedding: linear, whitened or dct.

    `auto` is whitened for a Vision Transformer that predicts noise, and linear otherwise.
    """
    if config.model.patch_embed != "auto":
        return config.model.patch_embed
    return "whitened" if predicts_noise(config) and config.model.backbone == "vit" else "linear"


def noise_floor(sigma_max: float) -> float:
    """Return the variance added to each direction: that of the noise, but at least `FLOOR`.

    Args:
        sigma_max: The largest noise level; the level is uniform in [0, sigma_max].
    """
    return max(sigma_max**2 / 3, FLOOR)


def inverse_root(covariance: Square, floor: float) -> Square:
    """Return the symmetric matrix ``(covariance + floor * I) ** -0.5``, in float64.

    Unlike whitening in the basis of eigenvectors, the result does not depend on their signs and
    order.
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    return (vectors * (np.maximum(values, 0) + floor) ** -0.5) @ vectors.T


def whitening(mean: Pixels, covariance: Square, floor: float) -> InputMap:
    """Return the map that whitens patches of these moments plus noise of variance ``floor``."""
    return InputMap(np.asarray(mean, np.float64), inverse_root(covariance, floor))


def dct_scaling(patch_size: int, channels: int, floor: float) -> InputMap:
    """Return the map that scales the DCT coefficients of a patch, in all three axes.

    The variances of the coefficients follow from a model. Pixels at a distance d along a spatial
    axis have correlation ``SPATIAL ** d``, as is common in image coding. Different channels have
    correlation ``SPECTRAL``. For patches of 4 x 4 pixels of CIFAR-10, the map lowers the condition
    number of the covariance from 4e4 to 48.

    Args:
        patch_size: The side of a patch in pixels.
        channels: The number of channels.
        floor: The variance to add to each coefficient.
    """
    distance = np.abs(np.subtract.outer(np.arange(patch_size), np.arange(patch_size)))
    bases, variances = [dct(patch_size), dct(patch_size), dct(channels)], []
    models = [SPATIAL**distance] * 2 + [np.where(np.eye(channels), 1.0, SPECTRAL)]
    for basis, model in zip(bases, models, strict=True):
        variances.append(np.diag(basis @ model @ basis.T))
    basis = functools.reduce(np.kron, bases)
    scale = (functools.reduce(np.kron, variances) + floor) ** -0.5
    return InputMap(np.zeros(len(basis)), (basis.T * scale) @ basis)


def dct(size: int) -> Float[np.ndarray, "size size"]:
    """Return the orthonormal matrix of the discrete cosine transform (DCT-II), a basis per row."""
    frequency, position = np.arange(size)[:, None], np.arange(size)[None]
    basis = np.sqrt(2 / size) * np.cos(np.pi * (position + 0.5) * frequency / size)
    basis[0] /= np.sqrt(2)
    return basis


class PatchEmbed(Linear):
    """A fixed linear map of patches, followed by a learned linear embedding.

    The map is multiplied with the embedding's kernel before the patches are embedded, so its cost
    does not depend on the number of patches. That product is in at least float32.

    Args:
        inputs: Pixel values per patch, all channels included.
        outputs: The width of a token.
        start: The initial value of the fixed map, which data may replace.
        **options: The types and the random numbers of the layer.
    """

    def __init__(self, inputs: int, outputs: int, *, start: InputMap, **options: Any):
        super().__init__(inputs, outputs, **options)
        self.map_mean, self.map = (
            nnx.BatchStat(jnp.asarray(array, options["param_dtype"])) for array in start
        )

    def __call__(
        self, inputs: Float[Array, "*batch inputs"], out_sharding: Any = None
    ) -> Float[Array, "*batch outputs"]:
        """Embed patches of plain pixels."""
        assert self.bias is not None
        dot = functools.partial(jnp.matmul, precision="highest")
        kernel = dot(self.map[...], self.kernel[...])
        bias = self.bias[...] - dot(self.map_mean[...], kernel)
        tokens = linear_product(inputs.astype(self.dtype), kernel.astype(self.dtype))
        return tokens + bias.astype(self.dtype)


def patch_embedding(config: ConfigDict, pixels: int) -> Any:
    """Return the function ``(pixels, width, **options)`` that builds a patch embedding.

    The map of ``whitened`` starts as the identity; a new run then measures it on its data.
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
    """Return the fixed map among the statistics of a network, in float64; None without a map."""
    stored = statistics.get("encoder", {}).get("patch_embed")
    if stored is None:
        return None
    return InputMap(*(np.asarray(stored[name], np.float64) for name in ("map_mean", "map")))


def fold(parameters: Any, statistics: Any) -> tuple[Any, Any]:
    """Fold the fixed map into the embedding, which then reads plain patches.

    Args:
        parameters: The parameters of a network.
        statistics: The batch statistics of the network.

    Returns:
        The parameters of a network with ``model.patch_embed="linear"``, and its statistics.
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
    """Return the embedding that, after a fixed map, equals an embedding of plain patches.

    Args:
        kernel, bias: The parameters of the embedding of plain patches.
        fixed: The fixed map.
    """
    plain = np.asarray(kernel, np.float64)
    return np.linalg.solve(fixed.map, plain), np.asarray(bias, np.float64) + fixed.mean @ plain
