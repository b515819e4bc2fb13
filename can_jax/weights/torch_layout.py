"""Conversion of can_jax parameters to and from MAE's names and PyTorch's layout.

MAE and timm use the same names for the arrays of a ViT. PyTorch stores a Linear weight as (out, in)
and a convolution as (out, in, height, width). MAE stores the arrays of each block separately;
can_jax stacks them along a layer axis.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from can_jax.distributed.sharding_rules import path_name
from can_jax.utils.errors import UserError

# The paths of parameters outside of blocks, and their names in MAE's code. The indices of
# `projection_head` count its activations, too.
NAMES = {
    "encoder/class_token": "cls_token",
    "encoder/patch_embed": "patch_embed.proj",
    "encoder/norm": "norm",
    "encoder/positions": "pos_embed",
    "encoder/registers": "reg_token",
    "encoder/pre_norm": "norm_pre",
    "noise_level/hidden": "noise_pe_mlp.0",
    "noise_level/out": "noise_pe_mlp.2",
    "decoder/embed": "decoder_embed",
    "decoder/mask_token": "mask_token",
    "decoder/norm": "decoder_norm",
    "decoder/predict": "decoder_pred",
    "decoder/predict_noise": "decoder_noise_pred",
    **{f"projector/layers/{i}": f"projection_head.{2 * i}" for i in range(4)},
}
BLOCKS = {"encoder/blocks/layers/": "blocks", "decoder/blocks/layers/": "decoder_blocks"}
BLOCK_NAMES = {
    "attention_norm": "norm1",
    "attention/qkv": "attn.qkv",
    "attention/out": "attn.proj",
    "mlp_norm": "norm2",
    "mlp/expand": "mlp.fc1",
    "mlp/contract": "mlp.fc2",
}
# The arrays of a block that only some encoders have; see `can_jax.models.variant`.
OPTIONAL_BLOCK_NAMES = {
    "attention/query_norm": "attn.q_norm",
    "attention/key_norm": "attn.k_norm",
    "attention_scale": "ls1.gamma",
    "mlp_scale": "ls2.gamma",
}
SUFFIXES = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}


class Entry(NamedTuple):
    """The MAE name of an array, and its location in can_jax's parameter tree.

    Attributes:
        name: MAE's name of the array.
        path: The path of the leaf in the parameter tree.
        layer: The index along the leaf's layer axis; None if the leaf has no such axis.
    """

    name: str
    path: tuple[Any, ...]
    layer: int | None


class Sizes(NamedTuple):
    """The sizes of an encoder: width, number of blocks, patch size in pixels, and channels."""

    width: int
    depth: int
    patch_size: int
    channels: int


def encoder_sizes(arrays: dict[str, np.ndarray]) -> Sizes:
    """Infer the sizes of an encoder from the shapes of arrays under MAE's names.

    Raises:
        UserError: The arrays are not those of a ViT under MAE's names.
    """
    embed = arrays.get("patch_embed.proj.weight")
    depth = len({name.split(".")[1] for name in arrays if name.startswith("blocks.")})
    if embed is None or not depth:
        missing = "patch_embed.proj.weight" if embed is None else "blocks.0"
        names = ", ".join(sorted(arrays)[:3]) or "none"
        raise UserError(
            f"{missing} is missing: the arrays must have the names of a ViT of MAE, timm, Hugging "
            f"Face or big_vision, but are, for example, {names}"
        )
    if embed.ndim != 4 or embed.shape[2] != embed.shape[3]:
        raise UserError(
            f"patch_embed.proj.weight has shape {embed.shape}; the shape (width, channels, "
            "patch, patch) is required"
        )
    width, channels, patch_size, _ = embed.shape
    return Sizes(width, depth, patch_size, channels)


def encoder_names(depth: int, options: Mapping[str, Any]) -> set[str]:
    """Return the names that the arrays of an encoder have in MAE's code, without `pos_embed`.

    Args:
        depth: The number of blocks.
        options: The options of the encoder; see `can_jax.models.variant`.
    """
    modules, arrays = [NAMES["encoder/patch_embed"], NAMES["encoder/norm"]], {"cls_token"}
    blocks = list(BLOCK_NAMES.values())
    if options.get("pre_norm"):
        modules.append("norm_pre")
    if options.get("qk_norm"):
        blocks += ["attn.q_norm", "attn.k_norm"]
    if options.get("registers"):
        arrays.add("reg_token")
    if options.get("layer_scale") is not None:
        arrays |= {f"blocks.{i}.ls{branch}.gamma" for i in range(depth) for branch in (1, 2)}
    modules += [f"blocks.{i}.{name}" for i in range(depth) for name in blocks]
    return arrays | {m + suffix for m in modules for suffix in (".weight", ".bias")}


def entries(parameters: Any) -> Iterator[Entry]:
    """Yield MAE's name and the location of each array of a can_jax parameter tree.

    Raises:
        KeyError: A parameter is not in the tables of names.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
        name = path_name(path)
        prefix = next((prefix for prefix in BLOCKS if name.startswith(prefix)), None)
        if name in NAMES:
            yield Entry(NAMES[name], path, None)
        elif prefix is None:
            module, suffix = name.rsplit("/", 1)
            yield Entry(NAMES[module] + SUFFIXES[suffix], path, None)
        else:
            inside = _in_block(name.removeprefix(prefix))
            for layer in range(leaf.shape[0]):
                yield Entry(f"{BLOCKS[prefix]}.{layer}.{inside}", path, layer)


def _in_block(name: str) -> str:
    """Return MAE's name of a block's parameter; ``name`` and the result are relative to the
    block."""
    names = BLOCK_NAMES | OPTIONAL_BLOCK_NAMES
    if name in names:
        return names[name]
    module, suffix = name.rsplit("/", 1)
    return names[module] + SUFFIXES[suffix]


def _to_torch(name: str, array: np.ndarray, patch_size: int) -> np.ndarray:
    """Convert one array, which has no layer axis, to PyTorch's layout."""
    if name.endswith("_token"):
        return array.reshape(1, -1, array.shape[-1])
    if name == "pos_embed":  # The class token has no position.
        return np.concatenate([np.zeros_like(array[:1]), array])[None]
    if name == "patch_embed.proj.weight":
        width = array.shape[-1]
        return array.reshape(patch_size, patch_size, -1, width).transpose(3, 2, 0, 1)
    if name.endswith("attn.qkv.weight"):
        return array.reshape(array.shape[0], -1).T
    return array.T if array.ndim == 2 and not name.endswith(".bias") else array.reshape(-1)


def _from_torch(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Convert an array from PyTorch's layout to the given shape in can_jax's layout.

    The array must have the exact shape of PyTorch's layout. A check of the number of elements alone
    would accept a transposed matrix.

    Raises:
        UserError: The array has another shape than required, or a type other than floating-point.
    """
    embed = name == "patch_embed.proj.weight"
    if name in ("pos_embed", "reg_token") and array.ndim == 3 and len(array) == 1:
        # The row of the class token is zero; see `can_jax.weights.variants`.
        array, wanted = array[0, 1:] if name == "pos_embed" else array[0], shape
    elif name.endswith("_token"):
        wanted = (*(1 for _ in array.shape[1:]), *shape)
    elif embed:
        if array.ndim == 4 and np.prod(array.shape[1:]) != shape[0]:
            channels, *sides = array.shape[1:]
            raise UserError(
                f"the patches of {name} have {sides[0]} x {sides[1]} x {channels} values, but "
                f"those of this encoder have {shape[0]} (model.patch_size squared, times the "
                "channels)"
            )
        patch = max([1, *array.shape[2:]])
        wanted = (shape[1], shape[0] // patch**2, patch, patch)
    elif len(shape) == 1 or name.endswith(".bias"):
        wanted = (int(np.prod(shape)),)
    else:
        wanted = (int(np.prod(shape[1:])), shape[0])
    if array.shape != wanted or array.size != np.prod(shape):
        raise UserError(f"{name} has shape {array.shape}, but this encoder requires {wanted}")
    if array.dtype.kind != "f":
        raise UserError(f"{name} has the type {array.dtype}: floating-point numbers are required")
    if array.shape == shape and len(shape) == 2 and name.endswith(("_embed", "_token")):
        return array
    return (array.transpose(2, 3, 1, 0) if embed else array.T).reshape(shape)


def to_torch(parameters: Any, patch_size: int) -> dict[str, np.ndarray]:
    """Convert a tree of parameters or gradients to PyTorch's layout, under MAE's names."""
    leaves = dict(jax.tree_util.tree_leaves_with_path(parameters))
    arrays = {}
    for name, path, layer in entries(parameters):
        array = np.asarray(leaves[path])
        arrays[name] = _to_torch(name, array if layer is None else array[layer], patch_size)
    return arrays


def from_torch(arrays: dict[str, np.ndarray], like: Any) -> Any:
    """Convert arrays in PyTorch's layout to a can_jax parameter tree.

    Args:
        arrays: The arrays in PyTorch's layout by MAE's names. Arrays without a counterpart in the
            tree are ignored.
        like: A tree of arrays or shapes with the structure of the result.

    Raises:
        UserError: An array is missing, or has a wrong shape or type.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    layers: dict[tuple[Any, ...], list[np.ndarray]] = {path: [] for path, _ in leaves}
    shapes = {path: leaf.shape for path, leaf in leaves}
    for name, path, layer in entries(like):
        if name not in arrays:
            raise UserError(f"the weights have no {name}, which this encoder requires")
        shape = shapes[path] if layer is None else shapes[path][1:]
        layers[path].append(_from_torch(name, arrays[name], shape))
    stacked = [np.stack(parts).reshape(shapes[path]) for path, parts in layers.items()]
    return jax.tree_util.tree_unflatten(structure, stacked)
