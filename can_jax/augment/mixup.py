"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) on the device, for fine-tuning."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

GROUP = 32  # images that share a draw of mixup or CutMix


def mix(
    images: Float[Array, "rows height width channels"],
    targets: Float[Array, "rows classes"],
    key: Key[Array, ""],
    mixup: float,
    cutmix: float,
) -> tuple[Float[Array, "rows height width channels"], Float[Array, "rows classes"]]:
    """Apply mixup or CutMix to a batch, in groups of `GROUP` images.

    Each group draws its own method and mixing ratio. In MAE's code, each GPU draws a method and a
    ratio for its own 32 images. A batch whose size is not a multiple of `GROUP` is one group.
    For the arguments and the result, see `mix_group`.
    """
    if not (mixup or cutmix):
        return images, targets
    rows, classes = targets.shape
    groups = rows // GROUP if rows % GROUP == 0 else 1
    split = images.reshape(groups, -1, *images.shape[1:]), targets.reshape(groups, -1, classes)
    apply = jax.vmap(functools.partial(mix_group, mixup=mixup, cutmix=cutmix))
    mixed = apply(*split, jax.random.split(key, groups))
    return mixed[0].reshape(images.shape), mixed[1].reshape(targets.shape)


def mix_group(
    images: Float[Array, "rows height width channels"],
    targets: Float[Array, "rows classes"],
    key: Key[Array, ""],
    mixup: float,
    cutmix: float,
) -> tuple[Float[Array, "rows height width channels"], Float[Array, "rows classes"]]:
    """Mix each image and target with the image and target at the mirrored index.

    The first image is mixed with the last, the second with the second-to-last, and so on. Mixup
    blends two images; CutMix pastes a box of one image into another. If both methods are enabled,
    one is chosen at random with equal probability. All images of the group have the same mixing
    ratio.

    Args:
        images: The images of one group, which are mixed with one another.
        targets: The target class probabilities of each image.
        key: The random key of the group.
        mixup: The parameter alpha of mixup's Beta distribution; 0 disables mixup.
        cutmix: The parameter alpha of CutMix's Beta distribution; 0 disables CutMix.

    Returns:
        The mixed images and targets, with the shapes of ``images`` and ``targets``.
    """
    which, mixup_key, cutmix_key, y_key, x_key = jax.random.split(key, 5)

    def blended() -> tuple[Array, Array]:
        share = jax.random.beta(mixup_key, mixup, mixup)
        return share * images + (1 - share) * images[::-1], share

    def pasted() -> tuple[Array, Array]:
        _, height, width, _ = images.shape
        side = jnp.sqrt(1 - jax.random.beta(cutmix_key, cutmix, cutmix))

        def span(key: Array, length: int) -> tuple[Array, Array]:
            middle = jax.random.randint(key, (), 0, length)
            half = jnp.floor(side * length).astype(int) // 2
            return jnp.maximum(middle - half, 0), jnp.minimum(middle + half, length)

        (top, bottom), (left, right) = span(y_key, height), span(x_key, width)
        y, x = jnp.arange(height)[:, None], jnp.arange(width)
        inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
        # The box may have been clipped, so the share follows from its actual size.
        share = 1 - (bottom - top) * (right - left) / (height * width)
        return jnp.where(inside[..., None], images[::-1], images), share

    if mixup and cutmix:
        images, share = jax.lax.cond(jax.random.bernoulli(which), blended, pasted)
    else:
        images, share = blended() if mixup else pasted()
    return images, share * targets + (1 - share) * targets[::-1]
