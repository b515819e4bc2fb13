"""The encoder object that `can_jax.load` returns, with checks of its input."""

import os
import warnings
from typing import Any

import jax
import numpy as np

from can_jax.config.pretrained import FEATURES, encoder_table, resolve_blocks
from can_jax.config.resolve import as_size
from can_jax.distributed.mesh import make_mesh
from can_jax.encoders.pretrained import PretrainedEncoder, open_encoder, select
from can_jax.models.backbones import encoder_size, encoder_width
from can_jax.utils.errors import UserError, one_line
from can_jax.utils.files import expand_home
from can_jax.utils.settings import configuration
from can_jax.weights.read_weights import channel_values


class Encoder:
    """A pretrained encoder that maps images to features.

    Attributes:
        image_size: The (height, width) of the input images in pixels.
        patch_size: The side length of a patch in pixels.
        channels: The number of channels of the images.
        width: The width of the tokens.
        depth, heads: The numbers of blocks and of attention heads of the Vision Transformer; None
            for another backbone.
        mean, std: The mean and standard deviation of each channel, which normalize images in [0,
            1].
    """

    def __init__(self, subject: PretrainedEncoder):
        """Wrap an open encoder.

        Args:
            subject: The pretrained encoder: its configuration and parameters.
        """
        config = subject.config
        vit = config.model.backbone == "vit"
        size = encoder_size(config.model)
        self.image_size: tuple[int, int] = config.data.image_size
        self.patch_size: int = config.model.patch_size
        self.channels: int = config.data.channels
        self.width: int = encoder_width(config)
        self.depth: int | None = size.depth if vit else None
        self.heads: int | None = size.heads if vit else None
        self.mean: tuple[float, ...] = config.augment.mean
        self.std: tuple[float, ...] = config.augment.std
        self._subject = subject
        self._features = jax.jit(subject.features)

    def __repr__(self) -> str:
        height, width = self.image_size
        kind = f"{self._subject.config.model.backbone} of width {self.width}"
        if self.depth is not None:
            kind = f"ViT of width {self.width}, {self.depth} blocks, {self.heads} heads"
        return (
            f"Encoder({self._subject.identity['path']!r}: {kind}, patches of {self.patch_size}; "
            f"uint8 images (n, {height}, {width}, {self.channels}))"
        )

    def __call__(self, images: Any, features: str = "patches") -> np.ndarray:
        """Compute features of images.

        Args:
            images: The images, values 0 to 255 of type uint8 and shape (n, height, width,
                channels): an array, or an object that NumPy converts to one.
            features: The kind of features: the mean of the patch tokens (``patches``) or of all
                tokens (``all``), the class token (``class``), or the class token and the mean patch
                token concatenated (``both``).

        Returns:
            The features, float32 (n, width), or (n, 2 * width) for ``both``.

        Raises:
            UserError: The images have another type, range, shape or layout.
        """
        if features not in FEATURES:
            raise UserError(f"features={features!r}: choose one of {', '.join(FEATURES)}")
        array = self._checked(images)
        outputs = np.asarray(self._features(self._subject.parameters, array))
        return select(outputs, features, self._subject.patches)

    def _checked(self, images: Any) -> np.ndarray:
        """Return the images as a uint8 array.

        Raises:
            UserError: The images have another type, range, shape or layout.
        """
        try:
            array = np.asarray(images)
        except ValueError as error:
            raise UserError(
                "images do not form an array of one shape: give images of one size"
            ) from error
        except Exception as error:  # an arbitrary object can raise any type of exception
            raise UserError(f"images cannot be converted to an array: {one_line(error)}") from error
        expected = (*self.image_size, self.channels)
        if (
            array.dtype == np.uint8
            and array.ndim == 4
            and array.size
            and array.shape[1:] == expected
        ):
            return array
        # A list or a tensor of PyTorch has no `astype`.
        name = "images" if hasattr(images, "astype") else "np.asarray(images)"
        raise UserError(_refusal(array, expected, name))


def _refusal(array: np.ndarray, expected: tuple[int, ...], name: str) -> str:
    """Return an error message on images, with an expression that corrects them if there is one.

    Args:
        array: The images.
        expected: The (height, width, channels) that the encoder requires.
        name: An expression for the array.
    """
    shape = f"(n, {', '.join(map(str, expected))})"
    if array.size == 0:
        return f"images of shape {array.shape} are empty; give uint8 {shape}"
    hints, code, converted = _layout(array.shape, expected[2], name)
    fits = len(converted) == 4 and converted[1:] == expected
    if len(converted) == 4 and converted[3] != expected[2]:
        hints.append(f"the encoder takes {expected[2]} channels")
    elif len(converted) == 4 and not fits:
        hints.append("resize the images, or give can_jax.load the image_size")
    if array.dtype != np.uint8:
        start = f"images are {array.dtype}, not uint8 {shape}"
        if array.shape[1:] != expected:
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
        shape: The shape of the images.
        channels: The number of channels that the encoder requires.
        code: An expression for the images.
    """
    hints = []
    if len(shape) == 3 and channels in (shape[0], shape[2]):
        hints.append("these are of a single image")
        shape, code = (1, *shape), f"{code}[None]"
    if len(shape) == 4 and shape[1] == channels != shape[3]:
        hints.append("the channels are first, but must be last")
        shape, code = (shape[0], *shape[2:], channels), f"{code}.transpose(0, 2, 3, 1)"
    return hints, code, shape


def _as_bytes(array: np.ndarray, code: str) -> str:
    """Return a hint on how to convert the values of an array to uint8.

    Args:
        array: The images.
        code: An expression for the array in the right layout.
    """
    if array.dtype.kind not in "fiub":
        return "give values 0 to 255"
    low, high = array.min(), array.max()
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        return f"values in [0, 1] become uint8 by (255 * {code}).round().astype('uint8')"
    if array.dtype.kind != "b" and low >= 0 and high <= 255:
        return f"values in [0, 255] become uint8 by {code}.round().astype('uint8')"
    return f"values reach from {low} to {high}; give values 0 to 255, not normalized"


def _plain(value: Any) -> Any:
    """Convert scalars and arrays of NumPy and JAX to Python numbers and tuples."""
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
    """Open a pretrained encoder; see `can_jax.load`. All arguments are checked."""
    location = expand_home(os.fspath(path))
    image_size, heads, mean, std = map(_plain, (image_size, heads, mean, std))
    if image_size is not None:
        try:
            as_size(image_size)
        except UserError:
            raise UserError(
                f"{location}: image_size={image_size!r}: give an int, or (height, width), in pixels"
            ) from None
    for name, value in (("mean", mean), ("std", std)):
        if value is not None:
            try:
                channel_values(name, value, len(value) if isinstance(value, tuple) else 1)
            except UserError as error:
                raise UserError(f"{location}: {error}") from None
    table = encoder_table()
    changes = configuration(table)
    with changes.ignore_type():
        changes.data.image_size = image_size
        changes.model.update(dtype="float32", heads=heads, mean=mean, std=std)
    mesh = make_mesh(changes.mesh, jax.local_devices()[:1])
    try:
        changes = resolve_blocks(changes, table, "can_jax.load()")
    except UserError as error:
        reason = str(error).removeprefix("config.model.")
        raise UserError(f"{location}: {reason}") from None
    assumed: list[str] = []
    subject = open_encoder(location, False, changes, mesh, assumed.append)
    for line in assumed:
        warnings.warn(line, stacklevel=3)  # attributes the warning to the caller of `can_jax.load`
    return Encoder(subject)
