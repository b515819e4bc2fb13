"""CAN in JAX: contrastive, masked autoencoding and noise prediction in one pretraining step."""

import os
from typing import TYPE_CHECKING

from can_jax import interpreter

if TYPE_CHECKING:
    from can_jax.evaluate.subject import Encoder

__version__ = "0.1.0"

interpreter.prepare()  # here, as nothing is imported yet which would then be imported twice


def load(
    path: "str | os.PathLike[str]", image_size: "int | tuple[int, int] | None" = None
) -> "Encoder":
    """A pretrained encoder, to be called with images.

        encoder = can_jax.load("runs/vit_l")
        features = encoder(images)  # uint8 (n, height, width, channels) to float32 (n, width)

    Args:
        path: a run directory, an export, or a file of weights in a known layout.
        image_size: pixels, or (height, width); by default those of pretraining.

    Raises:
        can_jax.errors.UserError: there is no such thing, or nothing in it.
    """
    from can_jax.evaluate.subject import load_encoder
    from can_jax.files import expand_home

    return load_encoder(expand_home(os.fspath(path)), image_size)
