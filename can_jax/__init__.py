"""CAN in JAX: contrastive, masked autoencoding and noise prediction in one pretraining step."""

from typing import TYPE_CHECKING

from can_jax.cli import interpreter

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import SupportsIndex

    from can_jax.evaluate.encoder import Encoder

__version__ = "0.1.0"

interpreter.prepare()  # here, as nothing is imported yet which would then be imported twice


def load(
    path: "str | os.PathLike[str]",
    image_size: "int | Sequence[int] | None" = None,
    *,
    heads: "SupportsIndex | None" = None,
    mean: "Sequence[float] | None" = None,
    std: "Sequence[float] | None" = None,
) -> "Encoder":
    """Load a pretrained encoder, to be called with images.

        encoder = can_jax.load("runs/vit_l")
        features = encoder(images)  # uint8 (n, height, width, channels) to float32 (n, width)

    Args:
        path: A run directory, an export, a folder of Hugging Face or timm, or a file of weights.
        image_size: Pixels, or (height, width). The default is that of pretraining.
        heads: Attention heads, where neither the files nor the size of the ViT tell.
        mean: Of each channel of images in [0, 1]. The default is what the files state, else
            ImageNet's, with a warning.
        std: The standard deviations, likewise.

    Raises:
        can_jax.errors.UserError: The weights cannot be read, or this encoder would not compute
            their model's features.
    """
    from can_jax.evaluate.encoder import load_encoder

    return load_encoder(path, image_size, heads=heads, mean=mean, std=std)
