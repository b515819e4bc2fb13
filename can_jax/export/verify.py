"""Proof that an exported file holds what it should: other code reads it, and gives the same."""

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
    """By name, what can read a file here: the libraries that are installed, and code of ours that
    shares nothing with the exporter."""
    place = folder / file
    if format == "safetensors" and contents == "full":
        yield "plain reader", lambda: readers.by_own_names(model, place, sample, contents)
    elif format in ("timm", "huggingface", "big_vision", "safetensors"):
        yield "plain reader", lambda: readers.by_plain_reader(model, place, sample, contents)
    if format == "big_vision":
        name = f"flax.linen {version_of('flax')}"
        yield name, lambda: readers.by_linen(model, place, sample, approximate=False)
    if format in ("timm", "safetensors") and contents == "encoder" and installed("torch", "timm"):
        yield f"timm {version_of('timm')}", lambda: readers.by_timm(model, place, sample)
    if format == "huggingface" and installed("torch", "transformers"):
        name = f"transformers {version_of('transformers')}"
        yield name, lambda: readers.by_transformers(model, folder, sample, contents)
    if format == "onnx":
        name = f"onnxruntime {version_of('onnxruntime')}"
        yield name, lambda: readers.by_onnxruntime(model, place, sample)
    if format == "stablehlo":
        yield "jax.export", lambda: readers.by_stablehlo(model, place, sample)


def error_of(found: Arrays, wanted: Arrays) -> float:
    """The largest difference, relative to the largest value, of any array that was read."""
    return max(
        float(np.abs(array - wanted[name]).max() / np.abs(wanted[name]).max())
        for name, array in found.items()
    )


def check(
    model: Model, format: str, contents: str, folder: epath.Path, file: str
) -> dict[str, Any]:
    """Compare what the files give with what the run gives.

    Returns:
        What was compared, for the manifest.

    Raises:
        UserError: they differ by more than `LIMIT`, or cannot be read.
    """
    sample = readers.sample_of(model)
    wanted, errors = readers.reference(model, sample, contents), {}
    if format == "stablehlo":
        tokens = wanted[TOKENS]
        wanted[TOKENS] = np.concatenate([tokens[:, 0], tokens[:, 1:].mean(axis=1)], axis=1)
    for name, read in readers_of(model, format, contents, folder, file, sample):
        try:
            errors[name] = error_of(read(), wanted)
        except UserError:
            raise
        except Exception as error:  # of any kind, from the library that reads
            raise UserError(f"{folder / file}: the {name} fails: {one_line(error)}") from error
        if not errors[name] <= LIMIT:
            raise UserError(
                f"{folder / file} is not what was exported: by the {name} features differ by "
                f"{errors[name]:.1e}, more than {LIMIT}"
            )
    checked: dict[str, Any] = {"images": IMAGES, "limit": LIMIT, "largest_error": errors}
    if format == "big_vision":
        by_tanh = readers.by_linen(model, folder / file, sample, approximate=True)
        checked["with_gelu_by_tanh"] = error_of(by_tanh, wanted)
    return checked
