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
from can_jax.export.model import Model
from can_jax.export.readers import from_pretrained, installed
from can_jax.models.backbones import encoder_size
from can_jax.utils.errors import UserError
from can_jax.weights.layouts import to_big_vision, to_huggingface
from can_jax.weights.read_weights import METADATA

PLATFORMS = ("cpu", "cuda", "tpu")
ONE_FILE = 2**30  # The most bytes of weights inside an ONNX file. Protobuf's limit is twice that.


def write_safetensors(path: epath.Path, arrays: dict[str, np.ndarray], model: Model) -> None:
    """Write a safetensors file as libraries for PyTorch expect it.

    Its metadata repeats the facts that arrays do not determine, for copies without `manifest.json`.
    """
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    facts = {name: fact for name, fact in model.facts().items() if name != "source"}
    metadata = {"format": "pt", METADATA: json.dumps(facts)}
    path.write_bytes(save(contiguous, metadata=metadata))


def encoder_only(format: str, contents: str) -> None:
    """Raise `UserError` if more than the encoder is requested from an encoder-only format."""
    if contents != "encoder":
        raise UserError(f"--format={format} holds only an encoder: set --contents=encoder")


def write_timm(model: Model, contents: str, folder: epath.Path) -> str:
    """Write the state dict of timm's `VisionTransformer` with `num_classes=0`; return its file
    name."""
    encoder_only("timm", contents)
    write_safetensors(folder / "model.safetensors", model.encoder(), model)
    return "model.safetensors"


def write_huggingface(model: Model, contents: str, folder: epath.Path) -> str:
    """Write a directory for `from_pretrained` of transformers; return the name of its weight file.

    The model is `ViTModel`, or `ViTMAEForPreTraining` with the decoder.

    Raises:
        UserError: The images are not square, or there is no decoder.
    """
    full = contents == "full"
    config, size = model.config, encoder_size(model.config.model)
    height, width = config.data.image_size
    if height != width:
        raise UserError(f"--format=huggingface requires square images, not {height}x{width}")
    arrays = model.autoencoder() if full else model.encoder()
    theirs = to_huggingface(arrays, with_decoder=full)
    write_safetensors(folder / "model.safetensors", theirs, model)
    settings: dict[str, Any] = {
        "architectures": ["ViTMAEForPreTraining" if full else "ViTModel"],
        "model_type": "vit_mae" if full else "vit",
        "hidden_size": size.width, "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads, "intermediate_size": 4 * size.width,
        "hidden_act": "gelu", "layer_norm_eps": model.facts()["layer_norm_eps"],
        "image_size": height, "patch_size": config.model.patch_size,
        "num_channels": config.data.channels, "qkv_bias": True,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    if full:
        decoder = config.model.decoder
        settings |= {
            "decoder_hidden_size": decoder.width, "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.heads,
            "decoder_intermediate_size": 4 * decoder.width,
            "mask_ratio": config.model.mask_ratio,
            "norm_pix_loss": config.objective.reconstruction.normalize,
        }  # fmt: skip
    processor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True,
        "do_normalize": True, "size": {"height": height, "width": width}, "resample": 2,
        "rescale_factor": 1 / 255, "image_mean": list(config.augment.mean),
        "image_std": list(config.augment.std),
    }  # fmt: skip
    for name, content in (("config", settings), ("preprocessor_config", processor)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    return "model.safetensors"


def write_big_vision(model: Model, contents: str, folder: epath.Path) -> str:
    """Write the npz of big_vision's `vit.Model` (`pool_type="tok"`, no head); return its name."""
    encoder_only("big_vision", contents)
    with (folder / "model.npz").open("wb") as file:
        arrays: dict[str, Any] = dict(to_big_vision(model.encoder(), model.heads))
        np.savez(file, **arrays)
    return "model.npz"


def write_plain(model: Model, contents: str, folder: epath.Path) -> str:
    """Write the encoder under MAE's names, or all arrays under can_jax's; return the file name."""
    arrays = model.everything() if contents == "full" else model.encoder()
    write_safetensors(folder / "model.safetensors", arrays, model)
    return "model.safetensors"


def write_stablehlo(model: Model, contents: str, folder: epath.Path) -> str:
    """Write the encoder as a `jax.export` program and its weights; return the program's file name.

    The program runs on CPU, CUDA and TPU for any number of images. It maps weights by name and
    images of bytes to class token and mean patch token, side by side. The weights are a separate
    file, because those of a large model exceed what one program can hold.
    """
    encoder_only("stablehlo", contents)
    config = model.config
    graph, tree = model.network()
    structure = jax.tree.structure(tree)
    arrays: dict[str, Any] = {k: np.asarray(leaf) for k, leaf in named_leaves(tree).items()}
    order = list(arrays)

    def features(weights: dict[str, Any], images: Any) -> Any:
        parameters = jax.tree.unflatten(structure, [weights[name] for name in order])
        network = nnx.merge(graph, parameters, {}, copy=True)
        pixels = normalize(to_float(images), config.augment.mean, config.augment.std)
        tokens = network.encode(pixels)
        return jnp.concatenate([tokens[:, 0], tokens[:, 1:].mean(axis=1)], axis=1)

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
    """Write the encoder as an ONNX graph by PyTorch's exporter; return its file name.

    The graph is transformers' `ViTModel`. It maps `pixel_values` to `last_hidden_state` for any
    number of images.

    Raises:
        UserError: A required package is not installed.
    """
    encoder_only("onnx", contents)
    if not installed(*ONNX_PACKAGES):
        raise UserError(
            f"--format=onnx requires other packages: pip install {' '.join(ONNX_PACKAGES)}"
        )
    import torch

    with tempfile.TemporaryDirectory() as temporary:
        write_huggingface(model, contents, epath.Path(temporary))
        network = from_pretrained("ViTModel", epath.Path(temporary), add_pooling_layer=False)

    class Tokens(torch.nn.Module):  # ONNX outputs must be arrays, not a dataclass.
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixel_values: Any) -> Any:
            return self.network(pixel_values).last_hidden_state

    size = sum(4 * array.size for array in model.encoder().values())
    shape = (2, model.config.data.channels, *model.config.data.image_size)
    torch.onnx.export(
        Tokens().eval(), (torch.zeros(shape),), str(folder / "model.onnx"), dynamo=True,
        input_names=["pixel_values"], output_names=["last_hidden_state"], verbose=False,
        dynamic_shapes={"pixel_values": {0: "images"}}, external_data=size > ONE_FILE,
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
