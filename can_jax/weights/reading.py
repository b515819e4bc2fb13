"""Reading arrays from weight files without executing any code in them."""

import json
import re
import struct
from typing import NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from can_jax.utils.archives import read_npz
from can_jax.utils.errors import UserError, one_line, printable
from can_jax.utils.files import read_json
from can_jax.weights.layouts import PREFIX, Arrays, heads_of, layout_of, to_mae
from can_jax.weights.torch_file import read_torch, renamed

# The types of safetensors. 8-bit floats are left out, because their scales are stored elsewhere.
TYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
INDEX = ".index.json"  # The end of the name of a sharded file's index.
REFERENCE = re.compile(r"meta|(in|out|loss|grad)/.*")  # Arrays that are not weights.
LFS = b"version https://git-lfs"
SHARD = re.compile(r".*-\d+-of-(\d+)\.\w+")
# An array of an encoder inside a larger model, such as `module.backbone.patch_embed.proj.weight`.
INSIDE = re.compile(
    rf"((?:\w+\.)+)(?:patch_embed\.proj\.weight|(?:{PREFIX.pattern})embeddings\.cls_token)"
)


class Contents(NamedTuple):
    """The contents of a weight file.

    Attributes:
        arrays: The arrays of the file by name. Names of Hugging Face and big_vision are converted
            to MAE's.
        layout: The library whose array names the file uses, ``Hugging Face`` or ``big_vision``;
            None for other names.
        heads: The number of attention heads; None if no array has a separate axis of heads.
        metadata: The metadata strings of a safetensors file; empty for other files.
        notes: Warnings about weights in the file that are not used.
    """

    arrays: Arrays
    layout: str | None
    heads: int | None
    metadata: dict[str, str]
    notes: tuple[str, ...]


class OneFile(NamedTuple):
    """The contents of one file, with arrays under their original names; see `Contents`."""

    arrays: Arrays
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()


def _npz(path: epath.Path) -> OneFile:
    arrays = read_npz(path)
    if any(name.startswith("param/") for name in arrays):  # The file holds reference vectors.
        arrays = {
            name.removeprefix("param/"): array
            for name, array in arrays.items()
            if not REFERENCE.fullmatch(name)
        }
    return OneFile(arrays, {})


def _safetensors(path: epath.Path) -> OneFile:
    from safetensors import deserialize

    content = path.read_bytes()
    arrays = {}
    for name, tensor in deserialize(content):  # `deserialize` validates header and offsets.
        if tensor["dtype"] not in TYPES:
            raise UserError(f"{name} has the type {tensor['dtype']}, which is not supported")
        flat = np.frombuffer(tensor["data"], TYPES[tensor["dtype"]])
        arrays[name] = flat.reshape(tensor["shape"])
    (length,) = struct.unpack("<Q", content[:8])  # The length of the header.
    return OneFile(arrays, json.loads(content[8 : 8 + length]).get("__metadata__", {}))


def _torch(path: epath.Path) -> OneFile:
    arrays, notes = read_torch(path.read_bytes())
    return OneFile(arrays, {}, notes)


READERS = {
    ".npz": _npz,
    ".safetensors": _safetensors,
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt"), _torch),
}


def _one_file(path: epath.Path) -> OneFile:
    """Read one file with the reader for its suffix, and widen 16-bit floats."""
    suffix = path.suffix.lower()
    if suffix not in READERS:
        kinds = ", ".join([*READERS, f"*{INDEX}"])
        raise UserError(f"{path} is not a supported weight file; supported are {kinds}")
    try:
        with path.open("rb") as file:
            if file.read(len(LFS)) == LFS:
                raise UserError(
                    "the file is a Git LFS pointer: fetch the content with `git lfs pull`"
                )
        contents = READERS[suffix](path)
        return contents._replace(
            arrays={name: _plain(name, a) for name, a in contents.arrays.items()}
        )
    except UserError as error:
        raise UserError(f"{path} cannot be read: {printable(str(error))}") from error
    except Exception as error:  # A malformed file can raise any exception.
        raise UserError(
            f"{path} cannot be read. It is truncated or damaged: copy or download it again "
            f"({one_line(error)})"
        ) from error


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    """Widen 16-bit floats to float32, which is lossless. Refuse NaN, infinity, and values that
    would become infinite in float32."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2 and not array.dtype.names:
        array = array.view(ml_dtypes.bfloat16)  # NumPy's files have no name for bfloat16.
    if array.dtype in (np.float16, ml_dtypes.bfloat16):
        array = array.astype(np.float32)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            finite = np.isfinite(array.astype(np.float32, copy=False)).all()
        if not finite:
            raise UserError(f"{name} holds NaN or infinity in float32")
    return array


def _unwrapped(arrays: Arrays) -> Arrays:
    """Remove the prefix, such as ``module.backbone.``, from the names of an encoder's arrays.

    If another array's name begins with a part of the prefix, such as ``module.``, that part is also
    removed.

    Raises:
        UserError: The arrays are those of several encoders, or two arrays get the same name.
    """
    prefixes = {match[1] for name in arrays if (match := INSIDE.fullmatch(name))}
    if "patch_embed.proj.weight" in arrays or layout_of(arrays) or not prefixes:
        return arrays
    if len(prefixes) > 1:
        raise UserError(
            f"the file holds several encoders: {', '.join(sorted(prefixes))}; save only the "
            "arrays of the encoder to use"
        )
    (prefix,) = prefixes
    parts = prefix.split(".")[:-1]
    shared = [".".join(parts[: i + 1]) + "." for i in reversed(range(len(parts)))]

    def without_prefix(name: str) -> str:
        return name.removeprefix(next((start for start in shared if name.startswith(start)), ""))

    return renamed(arrays.items(), without_prefix)


def _shards(path: epath.Path) -> Arrays:
    """Read and merge all shards that an index file lists.

    If several shards hold an array of the same name, the index file determines which one is used.
    """
    try:
        files = read_json(path)["weight_map"]
        names = sorted(set(files.values()))
        if not all(isinstance(name, str) for name in names):
            raise UserError("weight_map has a value that is not a file name")
    except Exception as error:  # A malformed file can raise any exception.
        raise UserError(f"{path} is not a valid index of shards: {one_line(error)}") from error
    arrays: Arrays = {}
    for name in names:
        shard = path.parent / name
        if "/" in name or "\\" in name or not shard.exists():
            raise UserError(f"{path} names {name}, which is not in the same folder")
        for key, array in _one_file(shard).arrays.items():
            if key not in arrays or files.get(key) == name:
                arrays[key] = array
    if missing := sorted(files.keys() - arrays.keys()):
        raise UserError(f"{path} names {missing[0]}, which is not in {files[missing[0]]}")
    return arrays


def read_contents(path: epath.Path) -> Contents:
    """Read a weight file, or all shards that a ``*.index.json`` lists.

    Raises:
        UserError: The file has an unsupported suffix, is one shard of several, or cannot be read. A
            required array is missing, a value is not finite, or the file holds several encoders.
    """
    if path.name.endswith(INDEX):
        contents = OneFile(_shards(path), {})
    elif (shard := SHARD.fullmatch(path.name)) and int(shard[1]) > 1:
        raise UserError(
            f"{path} is one of {int(shard[1])} shards: use its folder, or the *{INDEX} beside it"
        )
    else:
        contents = _one_file(path)
    arrays, metadata, notes = contents
    try:
        arrays = _unwrapped(arrays)
        return Contents(to_mae(arrays), layout_of(arrays), heads_of(arrays), metadata, notes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_arrays(path: epath.Path) -> Arrays:
    """Return only the arrays of `read_contents`."""
    return read_contents(path).arrays
