"""Reads the tensors of a PyTorch file without PyTorch, and without executing anything in it.

A `.pth` is a zip archive with a pickle, which describes the tensors, and a file for the bytes of
each storage. A pickle may name any function to be called; here it may name those that describe
tensors, and any other ends in one line.
"""

import io
import pickle
import re
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


USUAL = ("model", "state_dict", "module")  # where codes that train save the weights
WEIGHTS = r"(.*\.)?(weight|bias)"  # of a model, not of its optimizer or loss
WRAPPED = re.compile(r"^((module|_orig_mod)\.)+")  # of DistributedDataParallel and torch.compile


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


def read_torch(content: bytes) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the arrays of a PyTorch file by name, and lines on other models in it.

    Of a training checkpoint, the arrays are those of its `model`, `state_dict` or `module`, or of
    the only model that it holds.

    Args:
        content: The bytes of the file.

    Raises:
        UserError: It holds something that is no array, or several models to choose from.
        ValueError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError: It is damaged.
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
    if not isinstance(tree, dict):
        raise ValueError(f"it holds a {type(tree).__name__}, not arrays by name")
    tree, notes = _model_in(tree)
    if not _is_state(tree):
        names = ", ".join(map(str, list(tree)[:5])) or "nothing"
        raise UserError(f"it holds no arrays by name; it holds {names}")
    arrays: dict[str, np.ndarray] = {}
    for name, array in _arrays_in(tree):
        plain = WRAPPED.sub("", name)
        if plain in arrays:
            raise UserError(f"it holds {plain} twice, once as {name}")
        arrays[plain] = array
    return arrays, notes


def _model_in(tree: dict[Any, Any]) -> tuple[dict[Any, Any], tuple[str, ...]]:
    """Return the weights to use of a training checkpoint, and lines on the others in it.

    Raises:
        UserError: There are several, and none is the usual one.
    """
    notes: tuple[str, ...] = ()
    path = ""
    while not _is_state(tree):
        inner = {key: value for key, value in tree.items() if isinstance(value, dict)}
        usual = [key for key in USUAL if key in inner and _holds(inner[key], ".*")]
        models = [key for key in inner if key in usual or _holds(inner[key], WEIGHTS)]
        if not models:
            break
        if not usual and len(models) == 1:
            usual = models
        if len(usual) != 1:
            raise UserError(
                f"it holds several models: {', '.join(map(str, models))}; save the one to use "
                f"alone: torch.save(torch.load(file){path}[{models[-1]!r}], other_file)"
            )
        (used,) = usual
        if others := [str(key) for key in models if key != used]:
            notes += (
                f"its weights {used!r} are used, and {', '.join(map(repr, others))} not; to use "
                f"those: torch.save(torch.load(file){path}[{others[0]!r}], other_file)",
            )
        tree, path = inner[used], f"{path}[{used!r}]"
    return tree, notes


def _is_state(tree: dict[Any, Any]) -> bool:
    """Return whether a dict itself holds arrays."""
    return any(isinstance(value, np.ndarray) for value in tree.values())


def _holds(tree: dict[Any, Any], names: str) -> bool:
    """Return whether a dict, or one within it, holds arrays of names that match a pattern."""
    if _is_state(tree):
        return any(re.fullmatch(names, str(name)) for name in tree)
    return any(isinstance(value, dict) and _holds(value, names) for value in tree.values())


def _arrays_in(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of a tree of dicts by dotted names, so that none is left out in silence."""
    for key, value in tree.items():
        if isinstance(value, np.ndarray):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict):
            yield from _arrays_in(value, f"{prefix}{key}.")
