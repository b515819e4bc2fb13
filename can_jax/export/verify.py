"""Verification of an export: independent code must compute the model's outputs from the exported
files."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from can_jax.augment.crops import center_crop
from can_jax.distributed.runtime import version_of
from can_jax.export import numpy_vit as plain
from can_jax.export import readers
from can_jax.export.descriptions import has_timm_names, is_dinov2
from can_jax.export.model import Model
from can_jax.export.readers import IMAGES, LIMIT, TOKENS, Arrays, Sample, installed
from can_jax.export.usage import PHOTO_CHANNELS
from can_jax.models.variant import variant_of
from can_jax.utils.errors import UserError, one_line


def readers_of(
    model: Model, format: str, contents: str, folder: epath.Path, file: str, sample: Sample
) -> Iterator[tuple[str, Callable[[], Arrays]]]:
    """Yield the name and the function of each available verifier of a file.

    Verifiers use reference code of can_jax, and the installed libraries that read the format.
    """
    path = folder / file
    if format == "safetensors" and contents == "full":
        yield "plain reader", lambda: readers.by_own_names(model, path, sample, contents)
    elif format in ("timm", "huggingface", "big_vision", "safetensors"):
        pooled = format == "huggingface" and contents == "encoder" and not is_dinov2(model)
        yield (
            "plain reader",
            lambda: readers.by_plain_reader(model, path, sample, contents, pooled=pooled),
        )
    if format == "big_vision":
        name = f"flax.linen {version_of('flax')}"
        tanh = variant_of(model.config.model).gelu == "tanh"
        yield name, lambda: readers.by_linen(model, path, sample, approximate=tanh)
    plain_names = (format, contents) == ("safetensors", "encoder") and has_timm_names(model)
    for_timm = format == "timm" or plain_names
    if for_timm and installed("torch", "timm"):
        name = f"timm {version_of('timm')}"
        yield name, lambda: readers.by_timm(model, path, sample, contents)
    if format == "huggingface" and installed("torch", "transformers"):
        name = f"transformers {version_of('transformers')}"
        yield name, lambda: readers.by_transformers(model, folder, sample, contents)
    if format == "onnx":
        name = f"onnxruntime {version_of('onnxruntime')}"
        yield name, lambda: readers.by_onnxruntime(model, path, sample)
    if format == "stablehlo":
        yield "jax.export", lambda: readers.by_stablehlo(model, path, sample)


def error_of(outputs: Arrays, expected: Arrays) -> float:
    """Return the maximum of the errors of all arrays.

    The error of an array is its maximum absolute difference from the expected array, divided by the
    maximum absolute value of the expected array.
    """
    return max(
        float(np.abs(array - expected[name]).max() / np.abs(expected[name]).max())
        for name, array in outputs.items()
    )


def preprocessing_differences(model: Model, format: str, folder: epath.Path) -> dict[str, float]:
    """Compare how the library of the export format and an evaluation preprocess images.

    Returns:
        A dict from the name of the library to the mean absolute pixel difference, on the scale of 0
        to 255. The dict is empty if the format has no preprocessing, the library is not installed,
        or the images are not in `PHOTO_CHANNELS`.

    Raises:
        UserError: The mean pixel difference exceeds `LEVELS`.
    """
    config = model.config
    if format not in PREPROCESSORS or config.data.channels not in PHOTO_CHANNELS:
        return {}
    packages, process = PREPROCESSORS[format]
    if not installed(*packages):
        return {}
    photos = photographs(config.data.channels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries warn that they choose a slower implementation
        pixels = process(folder, photos)
    views = np.stack([center_crop(photo, config.data.image_size) for photo in photos])
    ours = (views / 255 - config.augment.mean) / config.augment.std
    difference = 255 * np.abs((pixels - ours) * config.augment.std).mean()
    if not difference <= LEVELS:
        raise UserError(
            f"{folder}: {packages[-1]} preprocesses images differently than an evaluation: pixels "
            f"differ by {difference:.1f} on average, on the scale of 0 to 255"
        )
    return {packages[-1]: round(float(difference), 3)}


def photographs(channels: int, count: int = 3) -> list[np.ndarray]:
    """Return smooth random uint8 images of several sizes, similar to photographs.

    Args:
        channels: The number of channels.
        count: The number of images.
    """
    rng = np.random.default_rng(0)
    images: list[np.ndarray] = []
    for height, width in rng.integers(200, 600, (count, 2)).tolist():
        grains = rng.integers(0, 256, (channels, 9, 12), dtype=np.uint8)
        planes = [
            Image.fromarray(grain).resize((width, height), Image.Resampling.BICUBIC)
            for grain in grains
        ]
        images.append(np.stack([np.asarray(plane) for plane in planes], axis=2))
    return images


def image_processor(folder: epath.Path) -> Any:
    """Load the `transformers` image processor of an export, and replace its center crop by that of
    torchvision.

    If the margin of a crop is odd, half of the margin is not an integer. Evaluations, MAE and timm
    round half of an odd margin to the nearest even integer, as torchvision does. By default, the
    library `transformers` rounds down, which shifts some crops by one pixel.
    """
    import transformers
    from torchvision.transforms.v2.functional import center_crop

    processor = transformers.AutoImageProcessor.from_pretrained(str(folder))
    processor.center_crop = lambda image, size, **_: center_crop(image, [size.height, size.width])
    return processor


def _by_transformers(folder: epath.Path, photos: list[np.ndarray]) -> np.ndarray:
    processor = image_processor(folder)
    images = [Image.fromarray(photo.squeeze()) for photo in photos]
    pixels = processor(images, return_tensors="np")["pixel_values"]
    return np.asarray(pixels).transpose(0, 2, 3, 1)


def _by_timm(folder: epath.Path, photos: list[np.ndarray]) -> np.ndarray:
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    images = [Image.fromarray(photo.squeeze()) for photo in photos]
    return np.stack([transform(image).numpy().transpose(1, 2, 0) for image in images])


# The packages and the function that preprocess images as an exported folder states.
PREPROCESSORS = {
    "huggingface": (("torch", "torchvision", "transformers"), _by_transformers),
    "timm": (("torch", "timm"), _by_timm),
}
LEVELS = 1.0  # The largest mean difference in levels of 0 to 255.


def check(
    model: Model, format: str, contents: str, folder: epath.Path, file: str
) -> dict[str, Any]:
    """Compare the outputs computed from an exported file with the outputs of the exported model.

    Args:
        model: The exported model.
        format: The name of the format, a key of `FORMATS` in `formats.py`.
        contents: The exported part: ``encoder``, ``full`` or ``classifier``.
        folder: The directory of the export.
        file: The name of the weight or program file in ``folder``.

    Returns:
        A dict for the manifest: the number of images, the error limit, and the relative error of
        each verifier. If `preprocessing_differences` returns differences, the dict also holds them.
        For big_vision, the dict also holds the relative error that results from GELU in its tanh
        form.

    Raises:
        UserError: A relative error exceeds `LIMIT`, the file cannot be read, or the format's
            library preprocesses images differently than an evaluation.
    """
    sample = readers.sample_of(model)
    expected, errors = readers.reference(model, sample, contents), {}
    if format == "stablehlo" and TOKENS in expected:
        tokens, variant = expected[TOKENS], variant_of(model.config.model)
        pooled = [tokens[:, 0], tokens[:, 1:].mean(axis=1)]
        if variant.norm == "pooled":
            pooled = [plain.norm(one, model.encoder(), "norm", variant.epsilon) for one in pooled]
        expected[TOKENS] = np.concatenate(pooled, axis=1)
    for name, read in readers_of(model, format, contents, folder, file, sample):
        try:
            errors[name] = error_of(read(), expected)
        except UserError:
            raise
        except Exception as error:  # The reading library can raise any exception.
            raise UserError(f"{folder / file}: {name} failed: {one_line(error)}") from error
        if not errors[name] <= LIMIT:
            raise UserError(
                f"{folder / file} does not match the exported model: the outputs of {name} have a "
                f"relative error of {errors[name]:.1e}, more than {LIMIT}"
            )
    checked: dict[str, Any] = {"images": IMAGES, "limit": LIMIT, "largest_error": errors}
    if differences := preprocessing_differences(model, format, folder):
        checked["preprocessing"] = differences
    if format == "big_vision":
        by_tanh = readers.by_linen(model, folder / file, sample, approximate=True)
        checked["with_gelu_by_tanh"] = error_of(by_tanh, expected)
    return checked
