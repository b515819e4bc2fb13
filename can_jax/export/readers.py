"""What other code makes of an exported file: its tokens, and what its decoder predicts.

Each reader gives arrays by name, of `TOKENS` and `PREDICTION` those that it has, for the images of
`Sample`; `reference` gives all of them as the run does.
"""

import dataclasses
import functools
import importlib
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from can_jax.export import linen_vit as linen
from can_jax.export import numpy_vit as plain
from can_jax.export.model import HEADS_OF, Model
from can_jax.models import can
from can_jax.models.masking import patchify
from can_jax.train.losses import grid_of
from can_jax.utils.archives import read_npz
from can_jax.utils.errors import UserError
from can_jax.weights.reading import read_arrays

TOKENS, PREDICTION = "tokens", "prediction"
IMAGES = 3
LIMIT = 1e-4  # largest error of a feature, relative to the largest feature
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sample:
    """The same few images each time.

    Attributes:
        images: bytes, (images, height, width, channels).
        pixels: normalised.
        visible: so many patches from the first are given to the decoder.
    """

    images: np.ndarray
    pixels: np.ndarray
    visible: int

    @property
    def torch_pixels(self) -> Any:
        """As PyTorch has images: channels first."""
        import torch

        return torch.tensor(self.pixels.transpose(0, 3, 1, 2).copy())


def sample_of(model: Model) -> Sample:
    """Images of the model's size."""
    shape = (IMAGES, *model.config.data.image_size, model.config.data.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    augment = model.config.augment
    pixels = ((images / 255.0 - augment.mean) / augment.std).astype(np.float32)
    height, width = grid_of(model.config)
    return Sample(images, pixels, height * width // 2)


@functools.cache
def installed(*packages: str) -> bool:
    """Whether all of these can be imported; that a package is there does not say that it works."""
    try:
        modules = [importlib.import_module(package) for package in packages]
        # transformers imports a model where it is asked for.
        return all(hasattr(m, "ViTModel") for m in modules if m.__name__ == "transformers")
    except Exception:  # of any kind, from a package that may be anything
        return False


def reference(model: Model, sample: Sample, contents: str) -> Arrays:
    """What the run's own network gives, in float32; its decoder is told the noise level zero."""
    modules = [name for name in HEADS_OF if contents == "full" and name in model.parameters]
    network, parts = model.network(*modules)
    grid, patch_size = grid_of(model.config), model.config.model.patch_size

    def compute(parameters: Any, pixels: jax.Array) -> dict[str, jax.Array]:
        run = nnx.merge(network, parameters, {}, copy=True)
        found = {TOKENS: run.encode(pixels)}
        if "decoder" in modules:
            patches = patchify(pixels, patch_size)
            order = jnp.broadcast_to(jnp.arange(patches.shape[1]), patches.shape[:2])
            shown, sigma = patches[:, : sample.visible], jnp.zeros(len(patches))
            found[PREDICTION] = run(shown, order, sigma, grid=grid, train=False).prediction
        return found

    with jax.default_matmul_precision("highest"):
        return jax.device_get(jax.jit(compute)(parts, sample.pixels))


def by_plain(model: Model, arrays: Arrays, sample: Sample, contents: str) -> Arrays:
    """By `plain.py`, of arrays under MAE's names."""
    found = {TOKENS: plain.encode(arrays, sample.pixels, model.heads)}
    if contents == "full":
        latent = plain.encode(arrays, sample.pixels, model.heads, visible=sample.visible)
        found[PREDICTION] = plain.decode(arrays, latent, model.config.model.decoder.heads)
    return found


def by_plain_reader(model: Model, file: epath.Path, sample: Sample, contents: str) -> Arrays:
    """By NumPy alone, of a file under MAE's names or those of another library."""
    return by_plain(model, read_arrays(file), sample, contents)


def by_own_names(model: Model, file: epath.Path, sample: Sample, contents: str) -> Arrays:
    """By NumPy, of a file of everything under our own names, every array of which is the run's."""
    found, arrays = model.everything(), read_arrays(file)
    if wrong := sorted(found.keys() ^ arrays.keys()):
        verb = "lack" if wrong[0] in found else "have"
        raise UserError(f"{file}: the weights {verb} {wrong[0]}")
    for name, array in arrays.items():
        if not np.array_equal(array, found[name]):
            raise UserError(f"{file}: the weights have another {name}")
    return by_plain(model, model.encoder(), sample, "encoder")


def by_linen(model: Model, file: epath.Path, sample: Sample, *, approximate: bool) -> Arrays:
    """By Flax Linen, of a file in big_vision's layout."""
    arrays = read_npz(file)
    size, patch = can.encoder_size(model.config.model), model.config.model.patch_size
    return {TOKENS: linen.encode(arrays, sample.pixels, size, patch, approximate=approximate)}


def by_timm(model: Model, file: epath.Path, sample: Sample) -> Arrays:
    """By timm's `VisionTransformer`, which refuses any name too many or too few."""
    import timm
    import torch
    from safetensors.torch import load_file

    facts = model.facts()
    network = timm.models.VisionTransformer(
        img_size=tuple(facts["image_size"]), patch_size=facts["patch_size"],
        in_chans=facts["channels"], embed_dim=facts["width"], depth=facts["depth"],
        num_heads=facts["heads"], num_classes=0,
    )  # fmt: skip
    network.load_state_dict(load_file(str(file)))
    with torch.no_grad():
        return {TOKENS: network.eval().forward_features(sample.torch_pixels).numpy()}


def from_pretrained(kind: str, folder: epath.Path, **options: Any) -> Any:
    """A model of transformers from a directory, nothing from anywhere else.

    Raises:
        UserError: the directory lacks an array, or has one of another shape or too many.
    """
    import transformers

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    loaded: Any = getattr(transformers, kind).from_pretrained(
        str(folder), output_loading_info=True, **options
    )
    network, info = loaded
    for key in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if wrong := sorted(info[key]):
            raise UserError(f"{folder}: {key.replace('_', ' ')} for {kind}: {wrong[0]}")
    return network.eval()


def by_transformers(model: Model, folder: epath.Path, sample: Sample, contents: str) -> Arrays:
    """By transformers' `ViTModel`, or `ViTMAEForPreTraining` with the decoder."""
    import torch

    with torch.no_grad():
        if contents == "encoder":
            network = from_pretrained("ViTModel", folder, add_pooling_layer=False)
            return {TOKENS: network(sample.torch_pixels).last_hidden_state.numpy()}
        patches = int(np.prod(grid_of(model.config)))
        ratio = 1 - (sample.visible + 0.5) / patches  # rounded down, as it does
        network = from_pretrained("ViTMAEForPreTraining", folder, mask_ratio=ratio)
        order = torch.arange(patches, dtype=torch.float32).expand(IMAGES, -1)
        return {PREDICTION: network(sample.torch_pixels, noise=order).logits.numpy()}


def by_onnxruntime(model: Model, file: epath.Path, sample: Sample) -> Arrays:
    """By ONNX Runtime, asked for one image and for all."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def call(pixels: np.ndarray) -> np.ndarray:
        return session.run(None, {"pixel_values": pixels.transpose(0, 3, 1, 2)})[0]

    return {TOKENS: each_and_all(call, sample.pixels, file)}


def by_stablehlo(model: Model, file: epath.Path, sample: Sample) -> Arrays:
    """Class token and mean patch token by the program, asked for one image and for all."""
    program = jax.export.deserialize(bytearray(file.read_bytes()))
    weights = read_npz(file.parent / "weights.npz")
    features = each_and_all(lambda images: program.call(weights, images), sample.images, file)
    return {TOKENS: features}


def each_and_all(call: Any, images: np.ndarray, file: epath.Path) -> np.ndarray:
    """What a program says of all images, of which the first one alone must get the same."""
    whole, one = np.asarray(call(images)), np.asarray(call(images[:1]))
    if one.shape != whole[:1].shape or np.abs(one - whole[:1]).max() > LIMIT * np.abs(whole).max():
        raise UserError(f"{file} gives other features for one image than for several")
    return whole
