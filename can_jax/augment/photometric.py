"""Flip, color jitter, grayscale, blur and solarization of images on the device.

Each operation takes one image with values in [0, 1]. `augment` applies the enabled operations to a
batch of images. Probabilities and strengths have the same meaning as in torchvision. An operation
with probability or strength 0 is left out of the compiled program.
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
    """The probabilities and strengths of the photometric operations, with the same names as in
    `config.augment`.

    Attributes:
        flip: The probability of a horizontal flip.
        jitter: The probability of color jitter, which changes brightness, contrast, saturation and
            hue in random order.
        brightness: The jitter strength of the brightness. The factor that multiplies the brightness
            is drawn uniformly from [max(0, 1 - brightness), 1 + brightness].
        contrast: The jitter strength of the contrast, whose factor is drawn as for ``brightness``.
        saturation: The jitter strength of the saturation, whose factor is drawn as for
            ``brightness``.
        hue: The maximum shift of the hue, as a fraction of the color circle. The hue shift is drawn
            uniformly from [-hue, hue].
        grayscale: The probability of conversion to grayscale.
        blur: The probability of a Gaussian blur.
        blur_sigma: The smallest and largest standard deviation of the blur, in pixels.
        solarize: The probability of solarization, which inverts all values of at least 0.5.
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
        """Create a `Photometric` from ``config.augment``. Keys that are not fields are ignored."""
        return cls(**{field.name: settings[field.name] for field in dataclasses.fields(cls)})

    @property
    def needs_color(self) -> bool:
        """Whether any enabled operation is defined for RGB images only."""
        return bool((self.jitter and (self.saturation or self.hue)) or self.grayscale)


def luminance(image: Image) -> Float[Array, "height width"]:
    """Return the ITU-R 601 luma of an RGB image; for other images, return the mean of the
    channels."""
    if image.shape[0] != 3:
        return image.mean(axis=0)
    red, green, blue = image
    return 0.299 * red + 0.587 * green + 0.114 * blue


def blend(image: Image, parts: Float[Array, " 3"]) -> Image:
    """Return a weighted sum of an image, its luminance and its mean luminance, clipped to [0, 1].

    Depending on ``parts``, the sum changes the brightness, the contrast or the saturation. For a
    random order of these changes, `color_jitter` permutes their ``parts``.

    Args:
        image: An image (channels, height, width) with values in [0, 1].
        parts: The weights of the image, of its luminance and of its mean luminance.
    """
    luma = luminance(image)
    return jnp.clip(parts[0] * image + parts[1] * luma + parts[2] * luma.mean(), 0.0, 1.0)


def brightness_parts(factor: Scalar) -> Float[Array, " 3"]:
    """Return the weights with which `blend` multiplies the brightness by ``factor``."""
    return jnp.stack([factor, jnp.zeros_like(factor), jnp.zeros_like(factor)])


def contrast_parts(factor: Scalar) -> Float[Array, " 3"]:
    """Return the weights with which `blend` multiplies the contrast by ``factor``."""
    return jnp.stack([factor, jnp.zeros_like(factor), 1 - factor])


def saturation_parts(factor: Scalar) -> Float[Array, " 3"]:
    """Return the weights with which `blend` multiplies the saturation by ``factor``."""
    return jnp.stack([factor, 1 - factor, jnp.zeros_like(factor)])


def adjust_hue(image: Image, shift: Scalar) -> Image:
    """Shift the HSV hue of an RGB image by ``shift``, a fraction of the color circle."""
    red, green, blue = image
    value = image.max(axis=0)
    chroma = value - image.min(axis=0)
    divisor = jnp.where(chroma > 0, chroma, 1.0)
    # The largest channel is not selected by `value == red`, since the compiler may compute `red`
    # twice, with different rounding. Where two channels tie, their formulas agree.
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
    """Change brightness, contrast, saturation and hue by random amounts and in random order."""
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
        # The hue change gets a random index among the operations, so all orders are equally likely.
        hue_index = jax.random.randint(hue_index_key, (), 0, len(blends) + 1) if settings.hue else 0
        unchanged = jnp.array([1.0, 0.0, 0.0])  # weights with which `blend` changes nothing
    if settings.hue:
        for i in range(len(blends)):
            image = blend(image, jnp.where(i < hue_index, ordered[i], unchanged))
        shift = jax.random.uniform(hue_key, minval=-settings.hue, maxval=settings.hue)
        image = adjust_hue(image, shift)
    for i in range(len(blends)):
        image = blend(image, jnp.where(i >= hue_index, ordered[i], unchanged))
    return image


def blur_matrix(size: int, sigma: Scalar) -> Float[Array, "size size"]:
    """Return the matrix of a Gaussian blur along one axis.

    Borders are mirrored without repeating the edge pixel. As a matrix product, the blur can have a
    different width for each image of a batch; a convolution would need a separate kernel per image.

    Args:
        size: The number of pixels along the axis.
        sigma: The standard deviation of the blur in pixels.
    """
    index = jnp.arange(size)

    def weight(offset: Array) -> Array:
        return jnp.exp(-0.5 * jnp.square(offset / sigma))

    mirrored_low = weight(index[:, None] + index) * (index > 0)
    mirrored_high = weight(2 * (size - 1) - index - index[:, None]) * (index < size - 1)
    matrix = weight(index[:, None] - index) + mirrored_low + mirrored_high
    return matrix / matrix.sum(axis=1, keepdims=True)


def blur(image: Image, sigma: Scalar) -> Image:
    """Blur an image with a Gaussian whose standard deviation is ``sigma`` pixels."""
    vertical, horizontal = (blur_matrix(size, sigma) for size in image.shape[1:])
    return vertical @ image @ horizontal.T


def solarize(image: Image) -> Image:
    """Replace each value x of at least 0.5 by 1 - x."""
    return jnp.where(image >= 0.5, 1 - image, image)


def augment_one(image: Image, key: Key[Array, ""], settings: Photometric) -> Image:
    """Apply each enabled operation to one image, with the operation's probability."""
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
    """Augment each image of a batch with its own random key. Pixel values stay in [0, 1]."""

    def one(image: Array, key: Array) -> Array:
        return jnp.moveaxis(augment_one(jnp.moveaxis(image, -1, 0), key, settings), 0, -1)

    return jax.vmap(one)(images, keys)


def to_float(images: UInt8[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
    """Convert uint8 images to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def normalize(
    images: Float[Array, "*batch channels"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*batch channels"]:
    """Return ``(images - mean) / std``, with one mean and standard deviation per channel."""
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def denormalize(
    images: Float[Array, "*batch channels"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*batch channels"]:
    """Return ``images * std + mean``, the inverse of `normalize`."""
    return images * jnp.asarray(std, images.dtype) + jnp.asarray(mean, images.dtype)
