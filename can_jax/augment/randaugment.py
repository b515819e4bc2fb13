"""RandAugment and random erasing on the device, for fine-tuning.

RandAugment (arXiv 1909.13719) and random erasing (arXiv 1708.04896) are implemented as in timm.

RandAugment draws from the fifteen operations of timm's ``rand-m9-mstd0.5-inc1``. Under `jax.vmap`,
a choice among the operations would compute all fifteen for every image. To save computation, the
five geometric operations share one affine warp. The ten color operations are cheap, so all ten are
computed and one result is selected.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from can_jax.augment.photometric import luminance

Image = Float[Array, "channels height width"]  # values in [0, 1]
Scalar = Float[Array, ""]

MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
CHANGES = (
    "autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add", "color",
    "contrast", "brightness", "sharpness",
)  # fmt: skip
APPLIED = 0.5  # the probability that a drawn operation is applied


def autocontrast(image: Image) -> Image:
    """Rescale each channel linearly to the range [0, 1]; leave constant channels unchanged."""
    low, high = image.min(axis=(1, 2), keepdims=True), image.max(axis=(1, 2), keepdims=True)
    return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1.0), image)


def equalize(image: Image) -> Image:
    """Equalize the histogram of each channel with 256 bins, as Pillow does."""

    def channel(values: Int[Array, "height width"]) -> Float[Array, "height width"]:
        counts = jnp.zeros(256, jnp.int32).at[values.reshape(-1)].add(1)
        last = counts[255 - jnp.argmax(counts[::-1] > 0)]
        step = (counts.sum() - last) // 255
        table = (step // 2 + jnp.cumsum(counts) - counts) // jnp.maximum(step, 1)
        table = jnp.where(step > 0, jnp.clip(table, 0, 255), jnp.arange(256))
        return table[values] / 255.0

    return jax.vmap(channel)(jnp.round(255 * image).astype(jnp.int32))


def sharpened(image: Image, factor: Scalar) -> Image:
    """Change the sharpness of an image: ``factor`` 0 smooths it, 1 changes nothing, and larger
    values sharpen it.

    The smoothing filter is Pillow's 3 x 3 kernel, which leaves the border pixels unchanged.
    """
    kernel = jnp.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], image.dtype) / 13
    smooth = jax.vmap(lambda x: jax.scipy.signal.convolve2d(x, kernel, mode="valid"))(image)
    smooth = image.at[:, 1:-1, 1:-1].set(smooth)
    return smooth + factor * (image - smooth)


def change(image: Image, index: Int[Array, ""], strength: Scalar, factor: Scalar) -> Image:
    """Apply one of the color operations in `CHANGES` to an image.

    Args:
        image: An image with values in [0, 1].
        index: The index of the operation in `CHANGES`.
        strength: The magnitude of the operations posterize, solarize and solarize_add, in [0, 1].
        factor: The factor of the operations color, contrast, brightness and sharpness; 1 changes
            nothing.
    """
    bits = 4 - jnp.floor(4 * strength)  # the high bits that posterize keeps
    levels = 2.0 ** (8 - bits)
    bytes_ = jnp.round(255 * image)
    luma = luminance(image)
    results = (
        autocontrast(image),
        equalize(image),
        1 - image,
        jnp.floor(bytes_ / levels) * levels / 255,
        jnp.where(bytes_ < 256 - jnp.floor(256 * strength), image, 1 - image),
        jnp.where(bytes_ < 128, jnp.minimum(bytes_ + jnp.floor(110 * strength), 255) / 255, image),
        luma + factor * (image - luma),
        luma.mean() + factor * (image - luma.mean()),
        factor * image,
        sharpened(image, factor),
    )
    return jnp.clip(jnp.stack(results)[index], 0, 1)


def move_matrix(
    index: Int[Array, ""], amount: Scalar, size: tuple[int, ...]
) -> Float[Array, "2 3"]:
    """Return the affine map from output to source coordinates, for one geometric operation.

    Coordinates are (x, y) in pixels, relative to the image center. Shears leave the upper left
    corner fixed, as in Pillow.

    Args:
        index: The index of the operation in `MOVES`.
        amount: The signed magnitude in [-1, 1]. A magnitude of 1 rotates by 30 degrees, shears by
            0.3, or translates by 0.45 of the image's width or height.
        size: The (height, width) of the image.
    """
    height, width = size
    turn = jnp.deg2rad(30.0 * amount)
    zero, one = jnp.zeros(()), jnp.ones(())
    matrices = (
        [[jnp.cos(turn), jnp.sin(turn), zero], [-jnp.sin(turn), jnp.cos(turn), zero]],
        [[one, 0.3 * amount, 0.15 * amount * height], [zero, one, zero]],
        [[one, zero, zero], [0.3 * amount, one, 0.15 * amount * width]],
        [[one, zero, 0.45 * amount * width], [zero, one, zero]],
        [[one, zero, zero], [zero, one, 0.45 * amount * height]],
    )
    return jnp.stack([jnp.array(matrix) for matrix in matrices])[index]


def cubic(fraction: Float[Array, "height width"]) -> tuple[Float[Array, "height width"], ...]:
    """Return the cubic interpolation weights of the pixels at -1, 0, 1 and 2, for a point at
    ``fraction`` in [0, 1).

    The kernel is Keys' kernel with a = -1, as in Pillow's affine transform. The resize functions of
    Pillow and TensorFlow use Keys' kernel with a = -1/2.
    """
    t = fraction
    return (
        t * (-1 + t * (2 - t)),
        1 + t * t * (t - 2),
        t * (1 + t * (1 - t)),
        t * t * (t - 1),
    )


def moved(image: Image, matrix: Float[Array, "2 3"], fill: Float[Array, " channels"]) -> Image:
    """Warp an image by an affine map, with bicubic interpolation as in Pillow.

    For interpolation near the border, the border pixels are repeated outward.

    Args:
        image: An image with values in [0, 1].
        matrix: The affine map from output to source coordinates; see `move_matrix`.
        fill: The color of output pixels whose source lies outside the image.
    """
    _, height, width = image.shape
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(height) - middle_y, jnp.arange(width) - middle_x, indexing="ij")
    from_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] + middle_x
    from_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] + middle_y
    inside = (from_y >= -0.5) & (from_y < height - 0.5) & (from_x >= -0.5) & (from_x < width - 0.5)
    low_y, low_x = jnp.floor(from_y), jnp.floor(from_x)
    rows = [jnp.clip(low_y + i, 0, height - 1).astype(jnp.int32) for i in range(-1, 3)]
    columns = [jnp.clip(low_x + i, 0, width - 1).astype(jnp.int32) for i in range(-1, 3)]
    result = jnp.zeros_like(image)
    for row, weight in zip(rows, cubic(from_y - low_y), strict=True):
        for column, factor in zip(columns, cubic(from_x - low_x), strict=True):
            result += (weight * factor) * image[:, row, column]
    return jnp.where(inside, jnp.clip(result, 0, 1), fill[:, None, None])


def randaugment(
    image: Image,
    key: Key[Array, ""],
    operations: int,
    magnitude: float,
    deviation: float,
    fill: Float[Array, " channels"],
) -> Image:
    """Draw RandAugment operations at random, and apply each with probability `APPLIED`.

    Args:
        image: An image with values in [0, 1].
        key: The random key of the image.
        operations: The number of operations to draw, with replacement.
        magnitude: The mean magnitude of an operation, from 0 to 10.
        deviation: The standard deviation of the magnitude.
        fill: The color of pixels that geometric operations move in from outside the image.
    """
    for i in range(operations):
        choice_key, chance_key, strength_key, sign_key = jax.random.split(
            jax.random.fold_in(key, i), 4
        )
        chosen = jax.random.randint(choice_key, (), 0, len(MOVES) + len(CHANGES))
        drawn = magnitude + deviation * jax.random.normal(strength_key)
        strength = jnp.clip(drawn, 0, 10) / 10
        sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
        is_move = chosen < len(MOVES)
        matrix = move_matrix(jnp.minimum(chosen, len(MOVES) - 1), sign * strength, image.shape[1:])
        other = jnp.maximum(chosen - len(MOVES), 0)
        result = jnp.where(
            is_move,
            moved(image, matrix, fill),
            change(image, other, strength, 1 + 0.9 * sign * strength),
        )
        image = jnp.where(jax.random.bernoulli(chance_key, APPLIED), result, image)
    return image


def random_erasing(
    image: Float[Array, "height width channels"], key: Key[Array, ""], probability: float
) -> Float[Array, "height width channels"]:
    """Replace a random box of a normalized image by Gaussian noise, with probability
    ``probability``.

    The area of the box is drawn uniformly from 2 % to 33.3 % of the image. A box that is taller or
    wider than the image is clipped, and therefore covers a smaller area.

    Args:
        image: An image whose channels are normalized to mean 0 and standard deviation 1 over the
            data set.
        key: The random key of the image.
        probability: The probability of erasing a box, from 0 to 1.
    """
    chance, area_key, aspect_key, top_key, left_key, noise_key = jax.random.split(key, 6)
    height, width, _ = image.shape
    area = height * width * jax.random.uniform(area_key, minval=0.02, maxval=1 / 3)
    span = jnp.log(1 / 0.3)
    aspect = jnp.exp(jax.random.uniform(aspect_key, minval=-span, maxval=span))
    rows = jnp.minimum(jnp.round(jnp.sqrt(area * aspect)), height)
    columns = jnp.minimum(jnp.round(jnp.sqrt(area / aspect)), width)
    top = jnp.floor(jax.random.uniform(top_key) * (height - rows + 1))
    left = jnp.floor(jax.random.uniform(left_key) * (width - columns + 1))
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    inside = (y >= top) & (y < top + rows) & (x >= left) & (x < left + columns)
    noise = jax.random.normal(noise_key, image.shape, image.dtype)
    erased = jnp.where(inside[..., None], noise, image)
    return jnp.where(jax.random.bernoulli(chance, probability), erased, image)
