"""Reading and validation of the reference files of `python -m can_jax.selfcheck`."""

import json
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from can_jax.config.defaults import RECIPE, SIZE
from can_jax.config.resolve import default_config, resolve
from can_jax.objectives.base import WEIGHT
from can_jax.utils.archives import read_npz
from can_jax.utils.errors import UserError, one_line
from can_jax.utils.settings import Kind, Several, Whole, flat_keys, shown

File = dict[str, np.ndarray]

# The keys of a file's `meta`, and the corresponding keys of a recipe.
META = {
    "images": "batch_size",
    "views": "augment.views",
    "width": "model.width",
    "depth": "model.depth",
    "heads": "model.heads",
    "decoder_width": "model.decoder.width",
    "decoder_depth": "model.decoder.depth",
    "decoder_heads": "model.decoder.heads",
    "patch_size": "model.patch_size",
    "mask_ratio": "model.mask_ratio",
    "temperature": "objective.contrastive.temperature",
    "sigma_max": "noise.sigma_max",
    "sigma_scale": "noise.level_scale",
    "level_tokens": "noise.level_tokens",
    "normalize_targets": "objective.reconstruction.normalize",
    "noise_target": "noise.target",
    "noise_output": "model.decoder.noise_output",
    "patch_embed": "model.patch_embed",
}
# The values of keys that older files lack.
BEFORE = {
    "level_tokens": "visible",
    "normalize_targets": True,
    "noise_target": "scaled",
    "noise_output": False,
    "patch_embed": "linear",
}
WEIGHTED = ("contrastive", "reconstruction", "denoising")  # The losses, in the order of `weights`.
WEIGHTS = Several(WEIGHT, length=len(WEIGHTED))
# Optional keys that are checked but not used, since the arrays determine their values.
ALSO: dict[str, Kind] = {"image_size": SIZE, "keep": Whole(1)}
OUTPUTS = ("out/", "loss/", "grad/")


def read(path: str) -> tuple[dict[str, Any], File]:
    """Return the validated settings of a reference file, and its arrays by name.

    Raises:
        UserError: The file cannot be read, or a setting is missing or invalid.
    """
    try:
        arrays = read_npz(path)
    except FileNotFoundError:
        raise UserError(f"--reference={path} does not exist") from None
    except (UserError, OSError) as error:
        raise UserError(f"--reference={path} cannot be read: {one_line(error)}") from error
    if "meta" not in arrays:
        raise UserError(f"--reference={path} is not a reference file: it has no array 'meta'")
    return _settings(path, arrays.pop("meta")), arrays


def _settings(path: str, array: np.ndarray) -> dict[str, Any]:
    """Parse and validate the settings in the array `meta` of a reference file."""
    where = f"--reference={path}: 'meta'"
    text = array.item() if array.size == 1 else None
    if not isinstance(text, str | bytes):
        raise UserError(
            f"{where} is {array.dtype} of shape {array.shape}: give one string with a JSON object"
        )
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    if not isinstance(meta, dict):
        raise UserError(f"{where} is {shown(meta)}: give a JSON object of settings")
    kinds = {name: key.kind for name, key in flat_keys(RECIPE)}
    checked: dict[str, Kind] = {name: kinds[key] for name, key in META.items()}
    checked |= {"weights": WEIGHTS} | {name: ALSO[name] for name in ALSO if name in meta}
    meta = BEFORE | meta
    for name, kind in checked.items():
        if name not in meta:
            raise UserError(f"{where} has no key {name!r}: give {kind.describe()}")
        if not kind.accepts(meta[name]):
            raise UserError(f"{where} has {name}={shown(meta[name])}: give {kind.describe()}")
    return meta


def check_arrays(path: str, meta: dict[str, Any], file: File) -> None:
    """Check the input arrays against the settings, and check that all arrays hold finite numbers.

    Raises:
        UserError: An array is missing or invalid; the message names the array and the file.
    """
    where = f"--reference={path}"
    rows = meta["images"] * meta["views"]
    fixed_map = () if meta["patch_embed"] == "linear" else ("in/patch_mean", "in/patch_map")
    for name in ("in/views", "in/sigma", "in/unit_noise", "in/shuffle", *fixed_map):
        if name not in file:
            raise UserError(f"{where} has no array {name!r}")
    if not any(name.startswith(OUTPUTS) for name in file):
        raise UserError(
            f"{where} has no array to compare: no array name begins with out/, loss/ or grad/"
        )
    for name, array in file.items():
        if array.dtype.kind not in "fiub":
            raise UserError(f"{where}: array {name!r} has the type {array.dtype}: give numbers")
        if not name.startswith(("in/", "param/", *OUTPUTS)):
            logging.warning("%s: array %r is not used", where, name)
        if not np.isfinite(array).all():
            raise UserError(f"{where}: array {name!r} has values that are not finite")
        if name.startswith("out/") and array.shape[:1] != (rows,):
            raise _misshapen(path, name, array, f"({rows}, ...): images x views = {rows}")
    views = file["in/views"]
    if views.ndim != 4 or len(views) != rows:
        raise _misshapen(path, "in/views", views, f"({rows}, height, width, channels)")
    size = views.shape[1:3]
    if any(side % meta["patch_size"] for side in size):
        raise UserError(
            f"{where}: 'meta' has patch_size={meta['patch_size']}, which does not divide the size "
            f"{size[0]}x{size[1]} of the images in 'in/views'"
        )
    patches = views.shape[1] // meta["patch_size"] * (views.shape[2] // meta["patch_size"])
    pixels = meta["patch_size"] ** 2 * views.shape[3]
    shapes = {"sigma": (rows,), "unit_noise": views.shape, "shuffle": (rows, patches)}
    if fixed_map:
        shapes |= {"patch_mean": (pixels,), "patch_map": (pixels, pixels)}
    for name, shape in shapes.items():
        if file[f"in/{name}"].shape != shape:
            raise _misshapen(path, f"in/{name}", file[f"in/{name}"], str(shape))
    shuffle = np.sort(file["in/shuffle"], axis=-1)
    if shuffle.dtype.kind not in "iu" or (shuffle != np.arange(patches)).any():
        raise UserError(
            f"{where}: array 'in/shuffle' has a row that is not a permutation of the integers "
            f"from 0 to {patches - 1}"
        )


def _misshapen(path: str, name: str, array: np.ndarray, expected: str) -> UserError:
    return UserError(f"--reference={path}: array {name!r} has shape {array.shape}, not {expected}")


def _projector(path: str, file: File) -> list[np.ndarray]:
    """Return the kernels of the projector's linear layers, which have even indices in the file."""
    weights: list[np.ndarray] = []
    while (name := f"param/projection_head.{2 * len(weights)}.weight") in file:
        if file[name].ndim != 2:
            raise _misshapen(path, name, file[name], "(outputs, inputs)")
        weights.append(file[name])
    if not weights:
        raise UserError(f"--reference={path} has no array {name!r}")
    return weights


def config_of(path: str, meta: dict[str, Any], file: File, dtype: str) -> ConfigDict:
    """Return the configuration of the network that a reference file describes.

    Args:
        path: The path of the file, for messages.
        meta: The settings from `read`.
        file: The arrays, validated by `check_arrays`.
        dtype: The dtype of the computation, ``float32`` or ``float64``.

    Raises:
        UserError: The settings contradict each other; the message names the keys of `meta`.
    """
    config = default_config()
    height, width, channels = file["in/views"].shape[1:]
    weights = _projector(path, file)
    config.total_steps = 1
    config.data.update(source="shapes", image_size=(height, width), channels=channels)
    config.augment.update(
        saturation=0.0, hue=0.0, grayscale=0.0, mean=(0.0,) * channels, std=(1.0,) * channels
    )
    config.update_from_flattened_dict({key: meta[name] for name, key in META.items()})
    config.model.dtype = dtype
    config.model.projector.update(
        layers=len(weights), hidden=weights[0].shape[0], outputs=weights[-1].shape[0],
        batch_norm=False,
    )  # fmt: skip
    for name, weight in zip(WEIGHTED, meta["weights"], strict=True):
        config.objective[name].weight = weight
    try:
        return resolve(config)
    except UserError as error:
        message = str(error)
        for name, key in META.items():
            message = message.replace(f"config.{key}=", f"'meta' has {name}=")
        message = message.replace("config.data.", "'in/views' has ")
        raise UserError(f"--reference={path}: {message}") from error
