"""Verification of an exported file: other code reads it and must compute the same outputs."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath

from can_jax.distributed.runtime import version_of
from can_jax.export import readers
from can_jax.export.model import Model
from can_jax.export.readers import IMAGES, LIMIT, TOKENS, Arrays, Sample, installed
from can_jax.utils.errors import UserError, one_line


def readers_of(
    model: Model, format: str, contents: str, folder: epath.Path, file: str, sample: Sample
) -> Iterator[tuple[str, Callable[[], Arrays]]]:
    """Yield the names and functions of all available verifiers of a file.

    They are the installed libraries, and reference code that shares nothing with the exporter.
    """
    path = folder / file
    if format == "safetensors" and contents == "full":
        yield "plain reader", lambda: readers.by_own_names(model, path, sample, contents)
    elif format in ("timm", "huggingface", "big_vision", "safetensors"):
        yield "plain reader", lambda: readers.by_plain_reader(model, path, sample, contents)
    if format == "big_vision":
        name = f"flax.linen {version_of('flax')}"
        yield name, lambda: readers.by_linen(model, path, sample, approximate=False)
    if format in ("timm", "safetensors") and contents == "encoder" and installed("torch", "timm"):
        yield f"timm {version_of('timm')}", lambda: readers.by_timm(model, path, sample)
    if format == "huggingface" and installed("torch", "transformers"):
        name = f"transformers {version_of('transformers')}"
        yield name, lambda: readers.by_transformers(model, folder, sample, contents)
    if format == "onnx":
        name = f"onnxruntime {version_of('onnxruntime')}"
        yield name, lambda: readers.by_onnxruntime(model, path, sample)
    if format == "stablehlo":
        yield "jax.export", lambda: readers.by_stablehlo(model, path, sample)


def error_of(outputs: Arrays, expected: Arrays) -> float:
    """Return the largest absolute error of any array, relative to its largest reference value."""
    return max(
        float(np.abs(array - expected[name]).max() / np.abs(expected[name]).max())
        for name, array in outputs.items()
    )


def check(
    model: Model, format: str, contents: str, folder: epath.Path, file: str
) -> dict[str, Any]:
    """Compare the outputs computed from an exported file with those of the run.

    Args:
        model: The exported model.
        format: The name of the format.
        contents: The exported part, ``encoder`` or ``full``.
        folder: The directory of the export.
        file: The name of the main file in it.

    Returns:
        The number of images, the limit, and the error of each verifier, for the manifest.

    Raises:
        UserError: An error exceeds `LIMIT`, or the file cannot be read.
    """
    sample = readers.sample_of(model)
    expected, errors = readers.reference(model, sample, contents), {}
    if format == "stablehlo":
        tokens = expected[TOKENS]
        expected[TOKENS] = np.concatenate([tokens[:, 0], tokens[:, 1:].mean(axis=1)], axis=1)
    for name, read in readers_of(model, format, contents, folder, file, sample):
        try:
            errors[name] = error_of(read(), expected)
        except UserError:
            raise
        except Exception as error:  # The reading library can raise any exception.
            raise UserError(f"{folder / file}: the {name} fails: {one_line(error)}") from error
        if not errors[name] <= LIMIT:
            raise UserError(
                f"{folder / file} does not match the exported model: by the {name} features differ "
                f"by {errors[name]:.1e}, more than {LIMIT}"
            )
    checked: dict[str, Any] = {"images": IMAGES, "limit": LIMIT, "largest_error": errors}
    if format == "big_vision":
        by_tanh = readers.by_linen(model, folder / file, sample, approximate=True)
        checked["with_gelu_by_tanh"] = error_of(by_tanh, expected)
    return checked
