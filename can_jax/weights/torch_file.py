"""Reads the tensors of a PyTorch file without PyTorch, and without executing anything in it.

A `.pth` is a zip archive with a pickle, which describes the tensors, and a file for the bytes of
each storage. A pickle may name any function to be called; here it may name those that describe
tensors, and any other ends in one line.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from can_jax.errors import UserError

# The types of PyTorch's storages.
TYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _Storage(NamedTuple):
    """Where a pickle has a storage."""

    dtype: Any
    key: str


class _Options:
    """Stands for the command line that some codes save beside the weights; it is not looked at."""


def _tensor(
    bytes_of: Callable[[str], bytes],
    storage: _Storage,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    *_: Any,
) -> np.ndarray:
    """A tensor as PyTorch describes it, if it lies within its storage."""
    flat = np.frombuffer(bytes_of(storage.key), storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= len(flat)):
        raise ValueError("a tensor reaches beyond its storage")
    width = flat.itemsize
    view = np.lib.stride_tricks.as_strided(
        flat[offset:], size, [width * step for step in stride], writeable=False
    )
    return np.array(view)


class _Unpickler(pickle.Unpickler):
    """Builds dicts, lists, numbers, strings and tensors, and nothing else."""

    def __init__(self, file: io.BytesIO, bytes_of: Callable[[str], bytes]):
        super().__init__(file)
        self._known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *rest: _tensor(bytes_of, *rest),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("argparse", "Namespace"): _Options,
            **{("torch", name): dtype for name, dtype in TYPES.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may name."""
        if (module, name) not in self._known:
            raise UserError(f"it wants {module}.{name}, which is no tensor; nothing of it was run")
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: `("storage", type, key, device, elements)`."""
        _, dtype, key, *_ = pid
        return _Storage(dtype, str(key))


def read_torch(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a PyTorch file by name; of a training checkpoint those of its `model` or
    `state_dict`.

    Args:
        content: the file.

    Raises:
        UserError: it wants to be more than arrays.
        ValueError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError: it is damaged.
    """
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise UserError("it is no archive of PyTorch 1.6 or later: load it there and save it again")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (description,) = (n for n in archive.namelist() if n.rsplit("/", 1)[-1] == "data.pkl")
        folder = description.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its numbers are big-endian")
        tree = _Unpickler(
            io.BytesIO(archive.read(description)), lambda key: archive.read(f"{folder}data/{key}")
        ).load()
    for name in ("model", "state_dict", "module"):
        if isinstance(tree, dict) and isinstance(tree.get(name), dict):
            tree = tree[name]
    if not isinstance(tree, dict):
        raise ValueError(f"it holds a {type(tree).__name__}, not arrays by name")
    if not any(isinstance(value, np.ndarray) for value in tree.values()):
        names = ", ".join(map(str, list(tree)[:5])) or "nothing"
        raise UserError(f"it holds no arrays by name; it holds {names}")
    return {name.removeprefix("module."): array for name, array in _arrays_in(tree)}


def _arrays_in(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of a tree of dicts by dotted names, so that none is left out in silence."""
    for key, value in tree.items():
        if isinstance(value, np.ndarray):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict):
            yield from _arrays_in(value, f"{prefix}{key}.")
