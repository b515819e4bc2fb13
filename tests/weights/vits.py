"""Small ViTs in NumPy, as the files of other libraries hold them."""

import json
import struct

import numpy as np
from etils import epath
from safetensors.numpy import save_file

from tests.helpers.oracle import sincos_2d


def vit(width=24, depth=2, patch=4, grid=(4, 4), channels=3, seed=0, class_row=True):
    """A ViT under MAE's names with the fixed sin-cos positions of a grid."""
    rng = np.random.default_rng(seed)

    def random(*shape):
        return (0.2 * rng.standard_normal(shape)).astype(np.float32)

    positions = sincos_2d(*grid, width).astype(np.float32)
    if class_row:
        positions = np.concatenate([np.zeros((1, width), np.float32), positions])
    arrays = {
        "cls_token": random(1, 1, width), "pos_embed": positions[None],
        "patch_embed.proj.weight": random(width, channels, patch, patch),
        "patch_embed.proj.bias": random(width),
        "norm.weight": 1 + random(width), "norm.bias": random(width),
    }  # fmt: skip
    for i in range(depth):
        layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        for name, shape in layers.items():
            arrays[f"blocks.{i}.{name}.weight"] = random(*shape)
            arrays[f"blocks.{i}.{name}.bias"] = random(shape[0])
        for name in ("norm1", "norm2"):
            arrays[f"blocks.{i}.{name}.weight"] = 1 + random(width)
            arrays[f"blocks.{i}.{name}.bias"] = random(width)
    return arrays


def save_raw(place, arrays, dtype, kind):
    """Write safetensors of a type that NumPy's writer may not know."""
    header, content = {}, b""
    for name, array in arrays.items():
        piece = array.astype(dtype).tobytes()
        offsets = [len(content), len(content) + len(piece)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        content += piece
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    place.write_bytes(struct.pack("<Q", len(text)) + text + content)


def shards(place, arrays):
    """Write two shards and their table, as transformers does."""
    names, name = sorted(arrays), "model-{:05}-of-00002.safetensors"
    files = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        save_file({key: arrays[key] for key in part}, place / name.format(number))
        files |= dict.fromkeys(part, name.format(number))
    index = epath.Path(place) / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return index
