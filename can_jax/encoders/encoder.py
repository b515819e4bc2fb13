"""The encoder that `can_jax.load` returns."""

import os
import warnings
from typing import Any

import jax
import numpy as np

from can_jax.config.evaluation import FEATURES, default_evaluation, resolve_evaluation
from can_jax.config.resolve import as_size
from can_jax.distributed.mesh import make_mesh
from can_jax.encoders.pretrained import Subject, open_subject, select
from can_jax.models import can
from can_jax.utils.errors import UserError, one_line
from can_jax.utils.files import expand_home
from can_jax.weights.read_weights import channel_values


class Encoder:
    """A pretrained encoder that maps images to features.

    Attributes:
        image_size: (height, width) of the images that it takes.
        patch_size: Pixels along an edge of a patch.
        channels: Channels of the images.
        width, depth, heads: Sizes of the transformer.
        mean, std: By channel, with which images in [0, 1] are normalized.
    """

    def __init__(self, subject: Subject):
        """Wrap an open encoder.

        Args:
            subject: Configuration and parameters.
        """
        config = subject.config
        size = can.encoder_size(config.model)
        self.image_size: tuple[int, int] = config.data.image_size
        self.patch_size: int = config.model.patch_size
        self.channels: int = config.data.channels
        self.width, self.depth, self.heads = size.width, size.depth, size.heads
        self.mean: tuple[float, ...] = config.augment.mean
        self.std: tuple[float, ...] = config.augment.std
        self._subject = subject
        self._features = jax.jit(subject.features)

    def __repr__(self) -> str:
        height, width = self.image_size
        return (
            f"Encoder({self._subject.identity['path']!r}: ViT of width {self.width}, {self.depth} "
            f"blocks, {self.heads} heads, patches of {self.patch_size}; uint8 images "
            f"(n, {height}, {width}, {self.channels}))"
        )

    def __call__(self, images: Any, features: str = "patches") -> np.ndarray:
        """Compute features of images.

        Args:
            images: uint8 values 0 to 255 of shape (n, height, width, channels), as an array or as
                what NumPy makes one of.
            features: The mean of the patch tokens (``patches``) or of all tokens (``all``), the
                class token (``class``), or class token and patches side by side (``both``).

        Returns:
            float32 (n, width), or (n, 2 * width) for ``both``.

        Raises:
            UserError: The images are of another type, range, shape or layout.
        """
        if features not in FEATURES:
            raise UserError(f"features={features!r}: choose one of {', '.join(FEATURES)}")
        array = self._checked(images)
        found = np.asarray(self._features(self._subject.parameters, array))
        return select(found, features, self._subject.patches)

    def _checked(self, images: Any) -> np.ndarray:
        """Return images as the bytes that the encoder takes, or raise `UserError`."""
        try:
            array = np.asarray(images)
        except ValueError as error:
            raise UserError("images are no array of one shape: give images of one size") from error
        except Exception as error:  # of any kind, from what may be anything
            raise UserError(f"images are no array: {one_line(error)}") from error
        wanted = (*self.image_size, self.channels)
        if array.dtype == np.uint8 and array.ndim == 4 and array.size and array.shape[1:] == wanted:
            return array
        # A list or a tensor of PyTorch has no `astype`.
        name = "images" if hasattr(images, "astype") else "np.asarray(images)"
        raise UserError(_refusal(array, wanted, name))


def _refusal(array: np.ndarray, wanted: tuple[int, ...], name: str) -> str:
    """Return what is wrong with images, and the expression that makes them right if there is one.

    Args:
        array: The images.
        wanted: The (height, width, channels) that the encoder takes.
        name: An expression for the array.
    """
    shape = f"(n, {', '.join(map(str, wanted))})"
    if array.size == 0:
        return f"images of shape {array.shape} are empty; give uint8 {shape}"
    hints, code, found = _layout(array.shape, wanted[2], name)
    fits = len(found) == 4 and found[1:] == wanted
    if len(found) == 4 and found[3] != wanted[2]:
        hints.append(f"the encoder takes {wanted[2]} channels")
    elif len(found) == 4 and not fits:
        hints.append("resize the images, or give can_jax.load the image_size")
    if array.dtype != np.uint8:
        start = f"images are {array.dtype}, not uint8 {shape}"
        if array.shape[1:] != wanted:
            start = f"images are {array.dtype} of shape {array.shape}, not uint8 {shape}"
        hints.append(_as_bytes(array, code))
    else:
        start = f"images have shape {array.shape}, not {shape}"
        if code != name:
            hints.append(f"give {code}")
    return ": ".join([start, "; ".join(hints)] if hints else [start])


def _layout(
    shape: tuple[int, ...], channels: int, code: str
) -> tuple[list[str], str, tuple[int, ...]]:
    """Return hints on a layout, an expression for images with channels last, and its shape.

    Args:
        shape: Of the images.
        channels: Of those that the encoder takes.
        code: An expression for the images.
    """
    hints = []
    if len(shape) == 3 and channels in (shape[0], shape[2]):
        hints.append("these are of a single image")
        shape, code = (1, *shape), f"{code}[None]"
    if len(shape) == 4 and shape[1] == channels != shape[3]:
        hints.append("channels come first here and have to come last")
        shape, code = (shape[0], *shape[2:], channels), f"{code}.transpose(0, 2, 3, 1)"
    return hints, code, shape


def _as_bytes(array: np.ndarray, code: str) -> str:
    """Return how the values of an array, for which there is an expression, become bytes."""
    if array.dtype.kind not in "fiub":
        return "give values 0 to 255"
    low, high = array.min(), array.max()
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        return f"values in [0, 1] become uint8 by (255 * {code}).round().astype('uint8')"
    if array.dtype.kind != "b" and low >= 0 and high <= 255:
        return f"values in [0, 255] become uint8 by {code}.round().astype('uint8')"
    return f"values reach from {low} to {high}; give values 0 to 255, not normalized"


def _plain(value: Any) -> Any:
    """Return numbers and tuples of Python for scalars and arrays of NumPy and JAX."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def load_encoder(
    path: "str | os.PathLike[str]",
    image_size: Any = None,
    *,
    heads: Any = None,
    mean: Any = None,
    std: Any = None,
) -> Encoder:
    """Open an encoder; see `can_jax.load`. Anything may be given, and is checked."""
    place = expand_home(os.fspath(path))
    image_size, heads, mean, std = map(_plain, (image_size, heads, mean, std))
    if image_size is not None:
        try:
            as_size(image_size)
        except UserError:
            raise UserError(
                f"{place}: image_size={image_size!r}: give an int, or (height, width), in pixels"
            ) from None
    for name, value in (("mean", mean), ("std", std)):
        if value is not None:
            try:
                channel_values(name, value, len(value) if isinstance(value, tuple) else 1)
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
    changes = default_evaluation()
    with changes.ignore_type():
        changes.data.image_size = image_size
        changes.model.update(dtype="float32", heads=heads, mean=mean, std=std)
    mesh = make_mesh(changes.mesh, jax.local_devices()[:1])
    try:
        changes = resolve_evaluation(changes)
    except UserError as error:
        reason = str(error).removeprefix("config.model.")
        raise UserError(f"{place}: {reason}") from None
    assumed: list[str] = []
    subject = open_subject(place, False, changes, mesh, assumed.append)
    for line in assumed:
        warnings.warn(line, stacklevel=3)  # at the line that calls `can_jax.load`
    return Encoder(subject)
