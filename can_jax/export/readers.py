"""Verifiers: independent implementations that compute a model's outputs from exported files.

Each verifier returns a dict with outputs for the images of a `Sample`. The possible keys of the
dict are `TOKENS` for an encoder, `PREDICTION` for a decoder and `LOGITS` for a classifier.
`reference` computes the expected outputs with can_jax's network.
"""

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from can_jax.export import linen_vit as linen
from can_jax.export import numpy_vit as plain
from can_jax.export.descriptions import (
    CLASSIFIER,
    head_of,
    huggingface_class,
    pooler,
    timm_arguments,
)
from can_jax.export.model import Model
from can_jax.models.backbones import encoder_size
from can_jax.models.can import BUILDERS, grid_of
from can_jax.models.masking import patchify
from can_jax.models.variant import variant_of
from can_jax.utils.archives import read_npz
from can_jax.utils.errors import UserError
from can_jax.weights.read_weights import read_weights
from can_jax.weights.reading import read_arrays

TOKENS, PREDICTION, LOGITS = "tokens", "prediction", "logits"
IMAGES = 3
LIMIT = 1e-4  # The largest allowed error of a feature, relative to the largest feature.
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sample:
    """A small deterministic batch of images.

    Attributes:
        images: The uint8 images, (images, height, width, channels).
        pixels: The normalized float32 images, of the same shape.
        visible: The number of leading patches that are not masked when the decoder is verified.
    """

    images: np.ndarray
    pixels: np.ndarray
    visible: int

    @property
    def torch_pixels(self) -> Any:
        """The normalized images as a PyTorch tensor, channels first."""
        import torch

        return torch.tensor(self.pixels.transpose(0, 3, 1, 2).copy())


def sample_of(model: Model) -> Sample:
    """Return random images of the model's input size, the same in every call."""
    shape = (IMAGES, *model.config.data.image_size, model.config.data.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    augment = model.config.augment
    pixels = ((images / 255.0 - augment.mean) / augment.std).astype(np.float32)
    height, width = grid_of(model.config)
    return Sample(images, pixels, height * width // 2)


@functools.cache
def installed(*packages: str) -> bool:
    """Import the packages, and return whether this succeeded for all of them.

    An import is required, because an installed package may be broken.
    """
    try:
        modules = [importlib.import_module(package) for package in packages]
        # transformers imports a model lazily, on attribute access.
        return all(hasattr(m, "ViTModel") for m in modules if m.__name__ == "transformers")
    except Exception:  # A broken package can raise any exception.
        return False


def reference(model: Model, sample: Sample, contents: str) -> Arrays:
    """Compute the outputs of can_jax's network in float32; the decoder's noise level is 0."""
    if contents == CLASSIFIER:
        return {LOGITS: head_of(model).logits(sample.images)}
    modules = [name for name in BUILDERS if contents == "full" and name in model.parameters]
    network, parts = model.network(*modules)
    grid, patch_size = grid_of(model.config), model.config.model.patch_size

    def compute(parameters: Any, pixels: jax.Array) -> dict[str, jax.Array]:
        run = nnx.merge(network, parameters, {}, copy=True)
        outputs = {TOKENS: run.encode(pixels)}
        if "decoder" in modules:
            patches = patchify(pixels, patch_size)
            order = jnp.broadcast_to(jnp.arange(patches.shape[1]), patches.shape[:2])
            shown, sigma = patches[:, : sample.visible], jnp.zeros(len(patches))
            outputs[PREDICTION] = run(shown, order, sigma, grid=grid).prediction
        return outputs

    with jax.default_matmul_precision("highest"):
        return jax.device_get(jax.jit(compute)(parts, sample.pixels))


def by_plain(model: Model, arrays: Arrays, sample: Sample, contents: str) -> Arrays:
    """Compute the outputs with `numpy_vit.py` from arrays under MAE's names."""
    variant = variant_of(model.config.model)
    options: dict[str, Any] = {"eps": variant.epsilon, "gelu": variant.gelu}
    if contents == CLASSIFIER:
        head = head_of(model)
        final = variant.norm == "tokens" and head.normalizes_tokens
        tokens = plain.encode(arrays, sample.pixels, model.heads, **options, final_norm=final)
        pooled = tokens[:, 0] if head.pool == "class" else tokens[:, 1:].mean(axis=1)
        if not final:  # `read_weights` renames fc_norm to norm.
            pooled = plain.norm(pooled, arrays, "norm", variant.epsilon)
        return {LOGITS: pooled @ head.kernel + head.bias}
    final = variant.norm == "tokens"
    tokens = plain.encode(arrays, sample.pixels, model.heads, **options, final_norm=final)
    outputs = {TOKENS: tokens}
    if contents == "full":
        latent = plain.encode(arrays, sample.pixels, model.heads, visible=sample.visible)
        outputs[PREDICTION] = plain.decode(arrays, latent, model.config.model.decoder.heads)
    return outputs


def by_plain_reader(
    model: Model, file: epath.Path, sample: Sample, contents: str, *, pooled: bool = False
) -> Arrays:
    """Compute the outputs with `numpy_vit.py` from a file in the layout of any supported library.

    Args:
        model: The exported model.
        file: The path of the weight file.
        sample: The images.
        contents: The exported part: ``encoder``, ``full`` or ``classifier``.
        pooled: Whether the file must hold a pooler that returns the class token.

    Raises:
        UserError: The pooler is missing or does not return the class token.
    """
    # `read_weights` also converts the arrays by the facts that the folder states.
    arrays = read_weights(file).arrays
    identity = pooler(encoder_size(model.config.model).width) if pooled else {}
    for name, array in identity.items():
        if name not in arrays or not np.array_equal(arrays[name], array):
            raise UserError(f"{file}: {name} does not return the class token")
    return by_plain(model, arrays, sample, contents)


def by_own_names(model: Model, file: epath.Path, sample: Sample, contents: str) -> Arrays:
    """Check that a file holds all arrays of the run, and compute the tokens with `numpy_vit.py`.

    Raises:
        UserError: An array is missing from the file, is not in the run, or differs from that of the
            run.
    """
    expected, arrays = model.everything(), read_arrays(file)
    if wrong := sorted(expected.keys() ^ arrays.keys()):
        verb = "lack" if wrong[0] in expected else "have"
        raise UserError(f"{file}: unlike the run, the weights {verb} {wrong[0]}")
    for name, array in arrays.items():
        if not np.array_equal(array, expected[name]):
            raise UserError(f"{file}: {name} differs from that of the run")
    return by_plain(model, model.encoder(), sample, "encoder")


def by_linen(model: Model, file: epath.Path, sample: Sample, *, approximate: bool) -> Arrays:
    """Compute the tokens with Flax Linen from a file in big_vision's layout."""
    arrays = read_npz(file)
    size, patch = encoder_size(model.config.model), model.config.model.patch_size
    return {TOKENS: linen.encode(arrays, sample.pixels, size, patch, approximate=approximate)}


def by_timm(model: Model, file: epath.Path, sample: Sample, contents: str) -> Arrays:
    """Compute the outputs with timm's `VisionTransformer`, which rejects missing or extra
    arrays."""
    import timm
    import torch
    from safetensors.torch import load_file

    classes = len(head_of(model).names) if contents == CLASSIFIER else 0
    arguments = timm_arguments(model, contents)
    network = timm.models.VisionTransformer(**arguments, num_classes=classes)
    network.load_state_dict(load_file(str(file)))
    with torch.no_grad():
        if contents == CLASSIFIER:
            return {LOGITS: network.eval()(sample.torch_pixels).numpy()}
        tokens = network.eval().forward_features(sample.torch_pixels).numpy()
    return {TOKENS: without_registers(tokens, model)}


def without_registers(tokens: np.ndarray, model: Model) -> np.ndarray:
    """Return class token and patch tokens, without the registers in between."""
    registers = model.facts()["options"].get("registers", 0)
    return np.delete(tokens, range(1, 1 + registers), axis=1)


def from_pretrained(kind: str, folder: epath.Path, **options: Any) -> Any:
    """Load a model of the library `transformers` from a directory, offline.

    Args:
        kind: The name of a class of the library `transformers`.
        folder: The directory of the export.
        options: Additional arguments of `from_pretrained`.

    Raises:
        UserError: An array in the directory is missing or unexpected, or has a wrong shape.
    """
    import transformers

    with _quiet(transformers.utils.logging):
        loaded: Any = getattr(transformers, kind).from_pretrained(
            str(folder), output_loading_info=True, local_files_only=True, **options
        )
    network, info = loaded
    for key in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if wrong := sorted(info[key]):
            raise UserError(
                f"{folder}: loading with {kind} reports {key.replace('_', ' ')}, such as {wrong[0]}"
            )
    return network.eval()


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Suppress the warnings and progress bars of the library `transformers` within this context.

    Args:
        logging: The module `transformers.utils.logging`.
    """
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def by_transformers(model: Model, folder: epath.Path, sample: Sample, contents: str) -> Arrays:
    """Compute the outputs with the class of the library `transformers` for the exported contents.

    Raises:
        UserError: An array is missing or unexpected, or has a wrong shape; or the pooler of an
            encoder does not return the class token.
    """
    import torch

    with torch.no_grad():
        kind = huggingface_class(model, contents)
        if contents == CLASSIFIER:
            return {LOGITS: from_pretrained(kind, folder)(sample.torch_pixels).logits.numpy()}
        if contents == "encoder":
            outputs = from_pretrained(kind, folder)(sample.torch_pixels)
            tokens = outputs.last_hidden_state.numpy()
            if np.abs(outputs.pooler_output.numpy() - tokens[:, 0]).max() > LIMIT:
                raise UserError(f"{folder}: the pooler does not return the class token")
            return {TOKENS: without_registers(tokens, model)}
        patches = int(np.prod(grid_of(model.config)))
        ratio = 1 - (sample.visible + 0.5) / patches  # transformers rounds down.
        network = from_pretrained("ViTMAEForPreTraining", folder, mask_ratio=ratio)
        order = torch.arange(patches, dtype=torch.float32).expand(IMAGES, -1)
        return {PREDICTION: network(sample.torch_pixels, noise=order).logits.numpy()}


def by_onnxruntime(model: Model, file: epath.Path, sample: Sample) -> Arrays:
    """Compute the tokens with ONNX Runtime; check that an image gives the same tokens alone as in a
    batch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def call(images: np.ndarray) -> np.ndarray:
        return session.run(None, {"images": images})[0]

    return {TOKENS: each_and_all(call, sample.images, file)}


def by_stablehlo(model: Model, file: epath.Path, sample: Sample) -> Arrays:
    """Compute features or logits with a StableHLO program; check that an image gives the same
    output alone as in a batch."""
    program = jax.export.deserialize(bytearray(file.read_bytes()))
    weights = read_npz(file.parent / "weights.npz")
    features = each_and_all(lambda images: program.call(weights, images), sample.images, file)
    return {LOGITS if model.head else TOKENS: features}


def each_and_all(call: Any, images: np.ndarray, file: epath.Path) -> np.ndarray:
    """Return a program's outputs for a batch of images.

    Raises:
        UserError: The output for the first image alone differs from its output in the batch.
    """
    whole, one = np.asarray(call(images)), np.asarray(call(images[:1]))
    if one.shape != whole[:1].shape or np.abs(one - whole[:1]).max() > LIMIT * np.abs(whole).max():
        raise UserError(f"{file} computes different outputs for an image alone and in a batch")
    return whole
