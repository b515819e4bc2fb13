"""Usage snippets for exported weights: a few lines of Python for each format.

An export runs the snippets with the exported directory as working directory. Each snippet assigns
the features or logits of two images to `features`.
"""

import os
import subprocess
import sys
from pathlib import Path

from etils import epath

import can_jax
from can_jax.export.descriptions import (
    CLASSIFIER,
    has_timm_names,
    head_of,
    timm_arguments,
)
from can_jax.export.model import Model
from can_jax.export.readers import installed
from can_jax.utils.errors import UserError

TORCH_INPUT = """
mean, std = torch.tensor({mean}), torch.tensor({std})
images = torch.randint(0, 256, (2, {height}, {width_px}, {channels}))  # your images, 0 to 255
pixels = ((images / 255 - mean) / std).permute(0, 3, 1, 2)
"""
PHOTOS = """
noise = np.random.default_rng(0).integers(0, 256, (2, 300, 400, {channels}), np.uint8)
images = [Image.fromarray(array.squeeze()) for array in noise]  # your images
"""
# The libraries resize images with an alpha channel with premultiplied alpha, evaluations do not.
PHOTO_CHANNELS = (1, 3)
TIMM = (
    """
import numpy as np
import timm
import torch
from PIL import Image

model = timm.create_model("local-dir:.", pretrained=True).eval()
settings = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**settings)
"""
    + PHOTOS
    + """
features = model(torch.stack([transform(image) for image in images]))
"""
)
STATE_DICT = (
    """
import timm
import torch
from safetensors.torch import load_file

model = timm.models.VisionTransformer(**{arguments}, num_classes=0)
model.load_state_dict(load_file("model.safetensors"))
"""
    + TORCH_INPUT
    + """
features = model.eval()(pixels)
"""
)
HUGGINGFACE = (
    """
import numpy as np
from PIL import Image
from torchvision.transforms.v2.functional import center_crop
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained(".")
# Round an odd margin as torchvision and the evaluations do; transformers rounds it down.
processor.center_crop = lambda image, size, **_: center_crop(image, [size.height, size.width])
model = AutoModel.from_pretrained(".").eval()
"""
    + PHOTOS
    + """
tokens = model(**processor(images, return_tensors="pt")).last_hidden_state
features = tokens[:, {first}:].mean(dim=1)  # tokens[:, 0] is the class token
"""
)
AUTOENCODER = (
    """
import torch
from transformers import ViTMAEForPreTraining

model = ViTMAEForPreTraining.from_pretrained(".", mask_ratio=0.0).eval()
"""
    + TORCH_INPUT
    + """
features = model.vit(pixels).last_hidden_state[:, 1:].mean(dim=1)
"""
)
CAN_JAX = """
import can_jax
import numpy as np

encoder = can_jax.load(".")
images = np.random.default_rng(0).integers(0, 256, (2, {height}, {width_px}, {channels}))
features = encoder(images.astype(np.uint8))
"""
STABLEHLO = """
import numpy as np
from jax import export

with open("model.stablehlo", "rb") as file:
    program = export.deserialize(bytearray(file.read()))
weights = dict(np.load("weights.npz"))
images = np.random.default_rng(0).integers(0, 256, (2, {height}, {width_px}, {channels}))
both = program.call(weights, images.astype(np.uint8))  # class token, then mean patch token
features = both[:, {width}:]
"""
STABLEHLO_CLASSIFIER = STABLEHLO[: STABLEHLO.index("both =")] + (
    "features = program.call(weights, images.astype(np.uint8))  # the logits\n"
)
HUGGINGFACE_CLASSIFIER = (
    HUGGINGFACE[: HUGGINGFACE.index("tokens =")].replace(
        "AutoModel", "AutoModelForImageClassification"
    )
    + 'features = model(**processor(images, return_tensors="pt")).logits\n'
)
ONNX = """
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
images = np.random.default_rng(0).integers(0, 256, (2, {height}, {width_px}, {channels}), np.uint8)
tokens, both = session.run(None, {{"images": images}})  # both: class token, then mean patch token
features = both[:, {width}:]
"""
# For each format and contents, the packages that a snippet imports, and the snippet.
SNIPPETS: dict[tuple[str, str], list[tuple[tuple[str, ...], str]]] = {
    ("timm", "encoder"): [(("torch", "timm"), TIMM), (("can_jax",), CAN_JAX)],
    ("huggingface", "encoder"): [
        (("torch", "torchvision", "transformers"), HUGGINGFACE),
        (("can_jax",), CAN_JAX),
    ],
    ("huggingface", "full"): [(("torch", "transformers"), AUTOENCODER), (("can_jax",), CAN_JAX)],
    ("big_vision", "encoder"): [(("can_jax",), CAN_JAX)],
    ("safetensors", "encoder"): [(("torch", "timm"), STATE_DICT), (("can_jax",), CAN_JAX)],
    ("safetensors", "full"): [(("can_jax",), CAN_JAX)],
    ("stablehlo", "encoder"): [(("jax",), STABLEHLO)],
    ("timm", "classifier"): [(("torch", "timm"), TIMM)],
    ("huggingface", "classifier"): [
        (("torch", "torchvision", "transformers"), HUGGINGFACE_CLASSIFIER)
    ],
    ("stablehlo", "classifier"): [(("jax",), STABLEHLO_CLASSIFIER)],
    ("onnx", "encoder"): [(("onnxruntime",), ONNX)],
}


def _snippets_of(model: Model, format: str, contents: str) -> list[tuple[tuple[str, ...], str]]:
    """Return the imported packages and the code of each snippet that works for a model."""
    chosen = SNIPPETS[format, contents]
    if model.config.data.channels not in PHOTO_CHANNELS:
        chosen = [pair for pair in chosen if PHOTOS not in pair[1]]
    return [pair for pair in chosen if pair[1] != STATE_DICT or has_timm_names(model)]


def snippets(model: Model, format: str, contents: str) -> dict[str, str]:
    """Return the usage snippets of a format, filled in with the values of a model.

    Returns:
        A dict from library name to code.
    """
    facts = model.facts()
    height, width = facts["image_size"]
    fields = facts | {"height": height, "width_px": width}
    fields["first"] = 1 + facts["options"].get("registers", 0)
    chosen = _snippets_of(model, format, contents)
    if any(code == STATE_DICT for _, code in chosen):
        fields["arguments"] = timm_arguments(model)
    return {
        packages[-1]: code.format(**fields).strip().replace("\n\n\n", "\n\n")
        for packages, code in chosen
    }


def run_snippets(model: Model, format: str, contents: str, folder: epath.Path) -> dict[str, str]:
    """Run the snippets whose libraries are installed, in the directory of an export.

    Returns:
        A dict from library name to the outcome of the snippet, for the manifest.

    Raises:
        UserError: A snippet failed, or its features have a wrong shape.
    """
    outcomes = {}
    codes = snippets(model, format, contents)
    paths = [str(Path(can_jax.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1"}
    environment = os.environ | offline | {"PYTHONPATH": os.pathsep.join(paths)}
    for packages, _ in _snippets_of(model, format, contents):
        name = packages[-1]
        if not installed(*packages):
            outcomes[name] = "not run, because its packages could not be imported"
            continue
        width = model.facts()["width"]
        shape = (2, len(head_of(model).names) if contents == CLASSIFIER else width)
        code = f"{codes[name]}\nassert tuple(features.shape) == {shape}, features.shape"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
            raise UserError(f"{folder}: the usage snippet for {name} failed: {last[0]}")
        outcomes[name] = "run"
    return outcomes
