"""Photometric augmentation on the device: flip, color jitter, grayscale, blur, solarize.

Each operation takes one image with values in [0, 1]; `augment` maps all of them over a batch. The
definitions are torchvision's, so recipes carry over. Operations of probability or strength 0 are
not compiled.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

Image = Float[Array, "channels height width"]  # planes are contiguous, for vector units
Scalar = Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Photometric:
    """The probabilities and strengths of the operations, under their keys of `config.augment`.

    Attributes:
        flip: The probability of a horizontal flip.
        jitter: The probability of color jitter, whose four operations come in random order.
        brightness: The strength s; the factor is drawn from [max(0, 1 - s), 1 + s].
        contrast: The strength s, with the same range of factors.
        saturation: The strength s, with the same range of factors.
        hue: The maximum shift of the hue; the shift is drawn from [-hue, hue], in turns of the
            color circle.
        grayscale: The probability of conversion to grayscale.
        blur: The probability of a Gaussian blur.
        blur_sigma: The range of the blur's standard deviation, in pixels.
        solarize: The probability of inverting all values of at least 0.5.
    """

    flip: float = 0.0
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> "Photometric":
        """Select the settings from ``config.augment``; those of crops, for example, are ignored."""
        return cls(**{field.name: settings[field.name] for field in dataclasses.fields(cls)})

    @property
    def needs_color(self) -> bool:
        """True if an enabled operation is defined for RGB images only."""
        return bool((self.jitter and (self.saturation or self.hue)) or self.grayscale)


def luminance(image: Image) -> Float[Array, "height width"]:
    """Return the ITU-R 601 luma of an RGB image; the mean of the channels of another image."""
    if image.shape[0] != 3:
        return image.mean(axis=0)
    red, green, blue = image
    return 0.299 * red + 0.587 * green + 0.114 * blue


def blend(image: Image, parts: Float[Array, " 3"]) -> Image:
    """Add the weighted image, its luminance and its mean luminance, and clip to [0, 1].

    Brightness, contrast and saturation all have this form. So jitter can draw which of them to
    apply without computing each.

    Args:
        image: The image.
        parts: The weights of the image, of its luminance and of its mean luminance.
    """
    luma = luminance(image)
    return jnp.clip(parts[0] * image + parts[1] * luma + parts[2] * luma.mean(), 0.0, 1.0)


def brightness_parts(factor: Scalar) -> Float[Array, " 3"]:
    """Return the weights of a blend with black."""
    return jnp.stack([factor, jnp.zeros_like(factor), jnp.zeros_like(factor)])


def contrast_parts(factor: Scalar) -> Float[Array, " 3"]:
    """Return the weights of a blend with the mean luminance of the image."""
    return jnp.stack([factor, jnp.zeros_like(factor), 1 - factor])


def saturation_parts(factor: Scalar) -> Float[Array, " 3"]:
    """Return the weights of a blend with the grayscale image."""
    return jnp.stack([factor, 1 - factor, jnp.zeros_like(factor)])


def adjust_hue(image: Image, shift: Scalar) -> Image:
    """Rotate the HSV hue of an RGB image by ``shift`` turns."""
    red, green, blue = image
    value = image.max(axis=0)
    chroma = value - image.min(axis=0)
    divisor = jnp.where(chroma > 0, chroma, 1.0)
    # The largest channel is not selected by `value == red`, since the compiler may compute the two
    # separately, with different rounding. Where two channels tie, their formulas agree.
    sixths = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / divisor,
        jnp.where(green >= blue, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    turned = sixths + 6 * shift

    def channel(offset: int) -> Array:
        k = jnp.mod(offset + turned, 6.0)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0.0, 1.0)

    return jnp.stack([channel(5), channel(3), channel(1)])


def color_jitter(image: Image, key: Key[Array, ""], settings: Photometric) -> Image:
    """Change brightness, contrast, saturation and hue in random order."""
    order_key, hue_index_key, hue_key, *keys = jax.random.split(key, 6)
    kinds = (
        (brightness_parts, settings.brightness),
        (contrast_parts, settings.contrast),
        (saturation_parts, settings.saturation),
    )
    blends = []
    for (parts, strength), draw in zip(kinds, keys, strict=True):
        if strength:
            low = max(0.0, 1 - strength)
            blends.append(parts(jax.random.uniform(draw, minval=low, maxval=1 + strength)))
    if blends:
        ordered = jax.random.permutation(order_key, jnp.stack(blends))
        # The hue comes before a random one of the others, or last: all orders are equally likely.
        hue_index = jax.random.randint(hue_index_key, (), 0, len(blends) + 1) if settings.hue else 0
        nothing = jnp.array([1.0, 0.0, 0.0])
    if settings.hue:
        for i in range(len(blends)):
            image = blend(image, jnp.where(i < hue_index, ordered[i], nothing))
        shift = jax.random.uniform(hue_key, minval=-settings.hue, maxval=settings.hue)
        image = adjust_hue(image, shift)
    for i in range(len(blends)):
        image = blend(image, jnp.where(i >= hue_index, ordered[i], nothing))
    return image


def blur_matrix(size: int, sigma: Scalar) -> Float[Array, "size size"]:
    """Return a Gaussian blur along one axis as a matrix.

    Borders are mirrored, without repeating the edge pixel. A matrix product applies an individual
    width to each image at full matrix speed, where a convolution would need one kernel per image.

    Args:
        size: The number of pixels along the axis.
        sigma: The standard deviation in pixels.
    """
    index = jnp.arange(size)

    def weight(offset: Array) -> Array:
        return jnp.exp(-0.5 * jnp.square(offset / sigma))

    mirrored_low = weight(index[:, None] + index) * (index > 0)
    mirrored_high = weight(2 * (size - 1) - index - index[:, None]) * (index < size - 1)
    matrix = weight(index[:, None] - index) + mirrored_low + mirrored_high
    return matrix / matrix.sum(axis=1, keepdims=True)


def blur(image: Image, sigma: Scalar) -> Image:
    """Apply a separable Gaussian blur with standard deviation ``sigma`` in pixels."""
    vertical, horizontal = (blur_matrix(size, sigma) for size in image.shape[1:])
    return vertical @ image @ horizontal.T


def solarize(image: Image) -> Image:
    """Invert the values of at least 0.5."""
    return jnp.where(image >= 0.5, 1 - image, image)


def augment_one(image: Image, key: Key[Array, ""], settings: Photometric) -> Image:
    """Apply each operation to one image with its own probability."""
    flip_key, jitter_key, gray_key, blur_key, solarize_key = jax.random.split(key, 5)

    def sometimes(key: Array, probability: float, changed: Image, image: Image) -> Image:
        return jnp.where(jax.random.bernoulli(key, probability), changed, image)

    if settings.flip:
        image = sometimes(flip_key, settings.flip, image[:, :, ::-1], image)
    if settings.jitter:
        coin, draw = jax.random.split(jitter_key)
        image = sometimes(coin, settings.jitter, color_jitter(image, draw, settings), image)
    if settings.grayscale:
        gray = jnp.broadcast_to(luminance(image), image.shape)
        image = sometimes(gray_key, settings.grayscale, gray, image)
    if settings.blur:
        coin, draw = jax.random.split(blur_key)
        low, high = settings.blur_sigma
        sigma = jax.random.uniform(draw, minval=low, maxval=high)
        image = sometimes(coin, settings.blur, blur(image, sigma), image)
    if settings.solarize:
        image = sometimes(solarize_key, settings.solarize, solarize(image), image)
    return image


def augment(
    images: Float[Array, "rows height width channels"],
    keys: Key[Array, " rows"],
    settings: Photometric,
) -> Float[Array, "rows height width channels"]:
    """Augment each row by its own key. Values stay in [0, 1]."""

    def one(image: Array, key: Array) -> Array:
        return jnp.moveaxis(augment_one(jnp.moveaxis(image, -1, 0), key, settings), 0, -1)

    return jax.vmap(one)(images, keys)


def to_float(images: UInt8[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
    """Convert bytes to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def normalize(
    images: Float[Array, "*batch channels"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*batch channels"]:
    """Return ``(images - mean) / std``, by channel."""
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def denormalize(
    images: Float[Array, "*batch channels"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*batch channels"]:
    """Return ``images * std + mean``, by channel; the inverse of `normalize`."""
    return images * jnp.asarray(std, images.dtype) + jnp.asarray(mean, images.dtype)
