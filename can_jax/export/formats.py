"""Writers of weights in the formats of other libraries."""

import json
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax import export as jax_export
from safetensors.numpy import save

from can_jax.augment.photometric import normalize, to_float
from can_jax.distributed.sharding_rules import named_leaves
from can_jax.export.descriptions import (
    CLASSIFIER,
    head_of,
    huggingface_class,
    huggingface_config,
    huggingface_processor,
    is_dinov2,
    pooler,
    refuse_options,
    timm_arrays,
    timm_config,
)
from can_jax.export.model import Model
from can_jax.export.readers import from_pretrained, installed
from can_jax.models.variant import variant_of
from can_jax.utils.errors import UserError
from can_jax.weights.layouts import to_big_vision, to_huggingface
from can_jax.weights.read_weights import METADATA

PLATFORMS = ("cpu", "cuda", "tpu")
ONE_FILE = 2**30  # The maximum size of weights inside an ONNX file; protobuf allows 2 GiB.


def write_safetensors(path: epath.Path, arrays: dict[str, np.ndarray], model: Model) -> None:
    """Write a safetensors file with the metadata that PyTorch libraries expect.

    The metadata also holds the model facts of `manifest.json`, so that the file can be used alone.
    """
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    facts = {name: fact for name, fact in model.facts().items() if name != "source"}
    metadata = {"format": "pt", METADATA: json.dumps(facts)}
    path.write_bytes(save(contiguous, metadata=metadata))


def encoder_only(format: str, contents: str) -> None:
    """Raise `UserError` if ``contents`` is not ``encoder``. The message states that ``format`` does
    not support ``contents``."""
    if contents != "encoder":
        raise UserError(
            f"--format={format} does not support --contents={contents}: set --contents=encoder"
        )


def write_timm(model: Model, contents: str, folder: epath.Path) -> str:
    """Write files for `timm.create_model("local-dir:…")`; return the name of the weight file."""
    if contents != CLASSIFIER:
        encoder_only("timm", contents)
    write_json(folder / "config.json", timm_config(model, contents))
    write_safetensors(folder / "model.safetensors", timm_arrays(model, contents), model)
    return "model.safetensors"


def write_json(path: epath.Path, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_huggingface(
    model: Model, contents: str, folder: epath.Path, format: str = "huggingface"
) -> str:
    """Write the files of a `transformers` model, and return the name of the weight file.

    An encoder with registers is exported as `Dinov2WithRegistersModel`, one with only LayerScale as
    `Dinov2Model`, and any other encoder as `ViTModel`. ``full`` is exported as
    `ViTMAEForPreTraining`, and a classifier as `ViTForImageClassification`.

    Raises:
        UserError: The images are not square, or the library `transformers` does not support an
            option of the encoder or the head. The error is also raised if ``contents`` is ``full``
            and the run has no decoder that predicts pixels.
    """
    full = contents == "full"
    height, width = model.config.data.image_size
    if height != width:
        raise UserError(f"--format={format} requires square images, not {height}x{width}")
    settings = huggingface_config(model, contents, format)
    arrays = model.autoencoder() if full else model.encoder()
    theirs = to_huggingface(arrays, with_decoder=full, dinov2=is_dinov2(model))
    if contents == CLASSIFIER:
        theirs = {f"vit.{name}": array for name, array in theirs.items()}
        theirs |= head_of(model).arrays(("classifier", ""))
    elif settings["model_type"] == "vit":
        theirs |= pooler(settings["hidden_size"])
    write_safetensors(folder / "model.safetensors", theirs, model)
    write_json(folder / "config.json", settings)
    write_json(folder / "preprocessor_config.json", huggingface_processor(model))
    return "model.safetensors"


def write_big_vision(model: Model, contents: str, folder: epath.Path) -> str:
    """Write an npz file for big_vision's `vit.Model` (`pool_type="tok"`); return the file name."""
    encoder_only("big_vision", contents)
    quick = model.facts()["options"].get("gelu") == "quick"
    refuse_options(model, "big_vision", set() if quick else {"gelu"})
    with (folder / "model.npz").open("wb") as file:
        arrays: dict[str, Any] = dict(to_big_vision(model.encoder(), model.heads))
        np.savez(file, **arrays)
    return "model.npz"


def write_plain(model: Model, contents: str, folder: epath.Path) -> str:
    """Write a safetensors file: the encoder under MAE's names, or for ``full`` all arrays under
    can_jax's names.

    Return the name of the file.
    """
    if contents == CLASSIFIER:
        encoder_only("safetensors", contents)
    arrays = model.everything() if contents == "full" else model.encoder()
    write_safetensors(folder / "model.safetensors", arrays, model)
    return "model.safetensors"


def write_stablehlo(model: Model, contents: str, folder: epath.Path) -> str:
    """Write the encoder as a `jax.export` program and its weights; return the program's file name.

    The program runs on CPU, CUDA and TPU for any number of images. The program has two arguments: a
    dict of weights, and uint8 images. A classifier's program returns the logits. An encoder's
    program returns the class token and the mean patch token, concatenated. The weights are in a
    separate file, because a serialized program cannot hold the weights of a large model.
    """
    if contents != CLASSIFIER:
        encoder_only("stablehlo", contents)
    config, head = model.config, head_of(model) if contents == CLASSIFIER else None
    graph, tree = model.network()
    tree = tree if head is None else head.state
    structure = jax.tree.structure(tree)
    arrays: dict[str, Any] = {k: np.asarray(leaf) for k, leaf in named_leaves(tree).items()}
    order = list(arrays)

    def features(weights: dict[str, Any], images: Any) -> Any:
        parameters = jax.tree.unflatten(structure, [weights[name] for name in order])
        if head is not None:
            return head.step.logits(parameters, images)
        network = nnx.merge(graph, parameters, {}, copy=True)
        pixels = normalize(to_float(images), config.augment.mean, config.augment.std)
        tokens = network.encode(pixels)
        pooled = [tokens[:, 0], tokens[:, 1:].mean(axis=1)]
        if variant_of(config.model).norm == "pooled":
            pooled = [network.encoder.norm(one) for one in pooled]
        return jnp.concatenate(pooled, axis=1)

    (count,) = jax_export.symbolic_shape("images")
    shape = (count, *config.data.image_size, config.data.channels)
    exported = jax_export.export(jax.jit(features), platforms=PLATFORMS)(
        {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()},
        jax.ShapeDtypeStruct(shape, jnp.uint8),
    )
    (folder / "model.stablehlo").write_bytes(bytes(exported.serialize()))
    with (folder / "weights.npz").open("wb") as file:
        np.savez(file, **arrays)
    return "model.stablehlo"


ONNX_PACKAGES = ("torch", "transformers", "onnxscript", "onnxruntime")


def write_onnx(model: Model, contents: str, folder: epath.Path) -> str:
    """Write the encoder as an ONNX graph with PyTorch's exporter; return the file name.

    The graph normalizes images and applies the encoder, which is built as a `transformers` model.
    The input `images` is uint8 of shape (n, height, width, channels), with any n. The output
    `tokens` holds the class token and the patch tokens. The output `features` is the class token
    and the mean patch token, concatenated.

    Raises:
        UserError: A required package is not installed, ``contents`` is not ``encoder``, the images
            are not square, or the library `transformers` does not support an option of the
            encoder.
    """
    encoder_only("onnx", contents)
    if not installed(*ONNX_PACKAGES):
        raise UserError(
            f"--format=onnx requires more packages: pip install {' '.join(ONNX_PACKAGES)}"
        )
    import torch

    with tempfile.TemporaryDirectory() as temporary:
        write_huggingface(model, contents, epath.Path(temporary), "onnx")
        network = from_pretrained(huggingface_class(model, contents), epath.Path(temporary))
    registers = model.facts()["options"].get("registers", 0)
    augment = model.config.augment

    class Tokens(torch.nn.Module):  # ONNX outputs must be arrays, not a dataclass.
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.register_buffer("mean", torch.tensor(augment.mean, dtype=torch.float32))
            self.register_buffer("std", torch.tensor(augment.std, dtype=torch.float32))

        def forward(self, images: Any) -> Any:
            pixels = (images.to(torch.float32) / 255 - self.mean) / self.std
            tokens = self.network(pixels.permute(0, 3, 1, 2)).last_hidden_state
            patches = tokens[:, 1 + registers :]
            kept = torch.cat([tokens[:, :1], patches], dim=1)
            return kept, torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=1)

    size = sum(4 * array.size for array in model.encoder().values())
    shape = (2, *model.config.data.image_size, model.config.data.channels)
    torch.onnx.export(
        Tokens().eval(), (torch.zeros(shape, dtype=torch.uint8),), str(folder / "model.onnx"),
        dynamo=True, input_names=["images"], output_names=["tokens", "features"], verbose=False,
        dynamic_shapes={"images": {0: "images"}}, external_data=size > ONE_FILE,
    )  # fmt: skip
    return "model.onnx"


Writer = Callable[[Model, str, epath.Path], str]
FORMATS: dict[str, Writer] = {
    "timm": write_timm,
    "huggingface": write_huggingface,
    "big_vision": write_big_vision,
    "safetensors": write_plain,
    "stablehlo": write_stablehlo,
    "onnx": write_onnx,
}
