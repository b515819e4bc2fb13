"""Proof that an exported file holds what it should: other code reads it, and gives the same."""

import importlib.util
import os
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Float, UInt8

from can_jax.errors import UserError
from can_jax.export import plain
from can_jax.export.model import Model
from can_jax.parallel.runtime import version_of
from can_jax.step import encoder_network
from can_jax.weights.reading import read_arrays

LIMIT = 1e-4  # largest error of a feature, relative to the largest feature
IMAGES = 3


def images_of(model: Model) -> UInt8[np.ndarray, "images height width channels"]:
    """The same few images each time."""
    shape = (IMAGES, *model.config.data.image_size, model.config.data.channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def pixels_of(model: Model, images: np.ndarray) -> Float[np.ndarray, "i h w c"]:
    """Normalised."""
    augment = model.config.augment
    return ((images / 255.0 - augment.mean) / augment.std).astype(np.float32)


def tokens_of(model: Model, images: np.ndarray) -> Float[np.ndarray, "images tokens units"]:
    """What the encoder of the run makes of images, in float32."""
    config = model.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.update(dtype="float32", remat="none")
    network = nnx.graphdef(encoder_network(config))
    encoder = nnx.merge(network, {"encoder": model.parameters["encoder"]}, {}, copy=True)
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(lambda x: encoder.encode(x))(pixels_of(model, images)))


def by_plain_reader(model: Model, file: epath.Path, images: np.ndarray) -> np.ndarray:
    """Tokens by `plain.py`, of a file of weights."""
    arrays = read_arrays(file)
    if not any(name.startswith("patch_embed") for name in arrays):  # our own names
        arrays = own_names(model, arrays)
    return plain.encode(arrays, pixels_of(model, images), model.heads)


def own_names(model: Model, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A file of everything, read as the encoder under MAE's names."""
    found = model.everything()
    if missing := sorted(found.keys() - arrays.keys()):
        raise UserError(f"the weights have no {missing[0]}")
    for name, array in arrays.items():
        if name not in found or not np.array_equal(array, found[name]):
            raise UserError(f"the weights have another {name}")
    return model.encoder()


def by_stablehlo(model: Model, file: epath.Path, images: np.ndarray) -> np.ndarray:
    """Features by the program, asked for one image and for all."""
    program = jax.export.deserialize(bytearray(file.read_bytes()))
    with np.load(file.parent / "weights.npz", allow_pickle=False) as content:
        weights = {name: content[name] for name in content.files}
    whole = np.asarray(program.call(weights, images))
    one = np.asarray(program.call(weights, images[:1]))
    if np.abs(one - whole[:1]).max() > LIMIT * np.abs(whole).max():
        raise UserError(f"{file} gives other features for one image than for several")
    return whole


def by_transformers(model: Model, folder: epath.Path, images: np.ndarray) -> np.ndarray:
    """Tokens by transformers."""
    import torch
    import transformers

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    pixels = torch.tensor(pixels_of(model, images).transpose(0, 3, 1, 2).copy())
    transformers.logging.set_verbosity_error()
    loaded: Any = transformers.ViTModel.from_pretrained(
        str(folder), add_pooling_layer=False, output_loading_info=True
    )
    network, info = loaded
    if wrong := [name for key in ("missing_keys", "mismatched_keys") for name in info[key]]:
        raise UserError(f"{folder} has no {wrong[0]}, as transformers sees it")
    with torch.no_grad():
        return network.eval()(pixels).last_hidden_state.numpy()


def check(
    model: Model, format: str, contents: str, folder: epath.Path, file: str
) -> dict[str, Any]:
    """Compare what the files give with what the run gives.

    Returns:
        What was compared, for the manifest.

    Raises:
        UserError: they differ by more than `LIMIT`.
    """
    images = images_of(model)
    wanted, readers = tokens_of(model, images), {}
    if format == "stablehlo":
        wanted = np.concatenate([wanted[:, 0], wanted[:, 1:].mean(axis=1)], axis=1)
        readers["jax.export"] = by_stablehlo(model, folder / file, images)
    else:
        readers["plain reader"] = by_plain_reader(model, folder / file, images)
    torch = importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")
    if format == "huggingface" and contents == "encoder" and torch:
        name = f"transformers {version_of('transformers')}"
        readers[name] = by_transformers(model, folder, images)
    errors = {
        name: float(np.abs(found - wanted).max() / np.abs(wanted).max())
        for name, found in readers.items()
    }
    for name, error in errors.items():
        if not error <= LIMIT:
            raise UserError(
                f"{folder / file} is not what was exported: by the {name} features differ by "
                f"{error:.1e}, more than {LIMIT}"
            )
    return {"images": IMAGES, "limit": LIMIT, "largest_error": errors}
