"""Preprocessing of single images for an encoder, and checks of batches of images."""

import os
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from can_jax.augment.crops import center_crop
from can_jax.data.decoding.decode import FILE_CHANNELS, pillow_pixels, pixels_of
from can_jax.utils.errors import UserError, one_line
from can_jax.utils.files import expand_home

Pixels = UInt8[np.ndarray, "height width channels"]


def preprocess(image: Any, data: ConfigDict) -> Pixels:
    """Decode, resize and center-crop one image as evaluations do, without TensorFlow.

    Args:
        image: The path of an image file, its content as bytes, a `PIL.Image.Image`, or a uint8
            array (height, width) or (height, width, channels).
        data: The config block `data` of the encoder, with the size and channels of the crop and the
            settings of decoding.

    Raises:
        UserError: The image cannot be read or decoded, or its type or shape is not supported.
    """
    if isinstance(image, str | os.PathLike):
        path = expand_home(os.fspath(image))
        try:
            content = epath.Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {one_line(error)}") from error
        return center_crop(_decoded(content, data, path), data.image_size)
    if isinstance(image, bytes):
        return center_crop(_decoded(image, data, "the image"), data.image_size)
    if isinstance(image, Image.Image):
        return center_crop(_of_pillow(image, data), data.image_size)
    return center_crop(_of_array(image, data.channels), data.image_size)


def _decoded(content: bytes, data: ConfigDict, name: str) -> Pixels:
    """Decode the bytes of an image file to pixels; ``name`` identifies the image in error
    messages."""
    if data.channels not in FILE_CHANNELS:
        raise UserError(
            f"{name}: image files can be decoded to 1, 3 or 4 channels, but the encoder takes "
            f"{data.channels}"
        )
    try:
        return pillow_pixels(
            content, data.channels, data.max_pixels, data.exif_orientation, data.range
        )
    except Exception as error:  # Pillow raises many types of exception for a broken image.
        raise UserError(f"{name} cannot be decoded: {one_line(error)}") from error


def _of_pillow(image: Image.Image, data: ConfigDict) -> Pixels:
    """Convert a `PIL.Image.Image`, whose file may not be decoded yet, to pixels."""
    channels = data.channels
    if channels not in FILE_CHANNELS:
        raise UserError(
            f"a PIL.Image has 1, 3 or 4 channels, but the encoder takes {channels}: give a uint8 "
            "array"
        )
    if image.mode.startswith("I") or image.mode == "F":
        raise UserError(
            f"the image has mode {image.mode}, with more than 8 bits per channel: give the path of "
            "its file, or a uint8 array"
        )
    try:
        upright = ImageOps.exif_transpose(image) if data.exif_orientation else image
        return pixels_of(upright, channels)
    except Exception as error:  # as in `_decoded`
        raise UserError(f"the image cannot be decoded: {one_line(error)}") from error


def _of_array(image: Any, channels: int) -> Pixels:
    """Check a single image that is given as an array, and convert it to the given number of
    channels."""
    try:
        array = np.asarray(image)
    except Exception as error:  # An arbitrary object can raise any type of exception.
        raise UserError(f"the image cannot be converted to an array: {one_line(error)}") from error
    expected = f"(height, width, {channels})"
    if array.dtype != np.uint8:
        given = "" if array.dtype.kind in "fiub" else ", the path of an image file, or a PIL.Image"
        raise UserError(f"the image is {array.dtype}: give uint8 {expected}{given}")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.size:
        if array.shape[2] == channels:
            return array
        if array.shape[2] in FILE_CHANNELS and channels in FILE_CHANNELS:
            plain = array[:, :, 0] if array.shape[2] == 1 else array
            return pixels_of(Image.fromarray(plain), channels)
    first = array.ndim == 3 and array.shape[0] == channels
    hint = ": the channels are first, but must be last" if first else ""
    raise UserError(f"the image has shape {array.shape}, not {expected}{hint}")


def checked(images: Any, expected: tuple[int, ...]) -> np.ndarray:
    """Return a batch of images as a uint8 array, after checking its dtype and shape.

    Args:
        images: An array (n, height, width, channels), or an object that NumPy converts to one.
        expected: The (height, width, channels) of the images that the encoder takes.

    Raises:
        UserError: The images are not uint8, or their shape does not match ``expected``.
    """
    try:
        array = np.asarray(images)
    except ValueError as error:
        raise UserError("the images have different shapes: give images of one size") from error
    except Exception as error:  # an arbitrary object can raise any type of exception
        raise UserError(f"images cannot be converted to an array: {one_line(error)}") from error
    if array.dtype == np.uint8 and array.ndim == 4 and array.size and array.shape[1:] == expected:
        return array
    # A list or a tensor of PyTorch has no `astype`.
    name = "images" if hasattr(images, "astype") else "np.asarray(images)"
    raise UserError(refusal(array, expected, name))


def refusal(array: np.ndarray, expected: tuple[int, ...], name: str) -> str:
    """Return an error message about images of a wrong dtype or shape. If possible, the message
    shows code that corrects the images.

    Args:
        array: The rejected images.
        expected: The (height, width, channels) of the images that the encoder takes.
        name: A Python expression for the array, such as ``images``, to show in the message.
    """
    shape = f"(n, {', '.join(map(str, expected))})"
    if array.size == 0:
        return f"images of shape {array.shape} are empty; give uint8 {shape}"
    hints, code, converted = _layout(array.shape, expected[2], name)
    fits = len(converted) == 4 and converted[1:] == expected
    if len(converted) == 4 and converted[3] != expected[2]:
        hints.append(f"the encoder takes {expected[2]} channels")
    elif len(converted) == 4 and not fits:
        hints.append("resize the images with encoder.preprocess, or set image_size in can_jax.load")
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
    """Return a list of hints about the shape of the images. Also return a Python expression that
    corrects the layout of the images, and the corrected shape.

    Args:
        shape: The shape of the rejected images.
        channels: The number of channels that the encoder takes.
        code: A Python expression for the array, such as ``images``, to show in the message.
    """
    hints = []
    if len(shape) == 3 and channels in (shape[0], shape[2]):
        hints.append("this is the shape of a single image")
        shape, code = (1, *shape), f"{code}[None]"
    if len(shape) == 4 and shape[1] == channels != shape[3]:
        hints.append("the channels are first, but must be last")
        shape, code = (shape[0], *shape[2:], channels), f"{code}.transpose(0, 2, 3, 1)"
    return hints, code, shape


def _as_bytes(array: np.ndarray, code: str) -> str:
    """Return a hint about the conversion of images to uint8.

    Args:
        array: The rejected images.
        code: A Python expression for the images in the correct layout.
    """
    if array.dtype.kind not in "fiub":
        return "give values 0 to 255"
    low, high = array.min(), array.max()
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        return f"convert values in [0, 1] to uint8 by (255 * {code}).round().astype('uint8')"
    if array.dtype.kind != "b" and low >= 0 and high <= 255:
        return f"convert values in [0, 255] to uint8 by {code}.round().astype('uint8')"
    return f"values range from {low} to {high}; give values from 0 to 255, not normalized"
