"""A reader for PyTorch files that needs no PyTorch and executes no code in them.

A `.pth` file is a zip archive with one file for each storage, and a pickle that describes the
tensors. A pickle can call any function by name. This reader allows only a few functions and types,
which describe tensors and options. The name of a function or type that is not allowed causes a
one-line error. The reader checks the offset and size of each tensor against the data.
"""

import io
import math
import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from can_jax.utils.archives import Budget, check_members
from can_jax.utils.errors import UserError

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

USUAL = ("model", "state_dict", "module")  # The keys under which training code saves the weights.
WEIGHTS = r"(.*\.)?(weight|bias)"  # Names in a model; an optimizer or loss has other names.
# Prefixes that DistributedDataParallel and torch.compile add to names.
WRAPPED = re.compile(r"^((module|_orig_mod)\.)+")
# The limit on the items of all dicts; a shared dict counts once for each path to it.
MOST_ITEMS = 1_000_000
DEEPEST = 100  # The limit on the nesting of dicts.


class _Type(NamedTuple):
    """The name of a storage type. A pickle could call a NumPy type, but cannot call this class's
    instances."""

    name: str


class _Storage(NamedTuple):
    """A reference to a storage: its type and its key in the archive."""

    type: _Type
    key: str


class _Storages:
    """The storages of a file, and the memory budget for the tensors that use them.

    Args:
        content: The bytes of the file.
        archive: The zip archive in the file, with validated members.
        folder: The archive folder of the storages, ending in a slash.
        budget: The memory budget of the whole file. Without a budget, a few bytes could describe
            tensors of any total size.
    """

    def __init__(self, content: bytes, archive: zipfile.ZipFile, folder: str, budget: Budget):
        self._content = memoryview(content)
        self._archive, self._folder, self._budget = archive, folder, budget
        self._verified: set[str] = set()  # Members with verified checksums.

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
        """Stand in for PyTorch's `_rebuild_tensor_v2`: return the tensor as an array.

        Raises:
            ValueError: The description is malformed, or the tensor exceeds its storage.
        """
        if not isinstance(storage, _Storage) or not isinstance(storage.type, _Type):
            raise ValueError("a tensor has no storage")
        if not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise ValueError("a tensor has no size and stride")
        values = (offset, *size, *stride)
        # NumPy's integers wrap around, and would pass the comparison below.
        if len(size) != len(stride) or any(type(value) is not int for value in values):
            raise ValueError("a tensor's offset, size and stride are not integers")
        dtype = np.dtype(TYPES[storage.type.name])
        member = self._archive.getinfo(f"{self._folder}{storage.key}")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        beyond = 0 not in size and last >= member.file_size // dtype.itemsize
        if min(values) < 0 or beyond:
            raise ValueError("a tensor reaches beyond its storage")
        if 0 in size:
            return np.zeros(size, dtype)
        self._budget.spend(math.prod(size) * dtype.itemsize)
        content = self._bytes(member)
        flat = np.frombuffer(content, dtype, len(content) // dtype.itemsize)
        view = np.lib.stride_tricks.as_strided(
            flat[offset:], size, [dtype.itemsize * step for step in stride], writeable=False
        )
        return np.array(view)

    def _bytes(self, member: zipfile.ZipInfo) -> bytes | memoryview:
        """Return the content of a storage; verify its checksum when the storage is first read."""
        if member.filename in self._verified:
            lengths = self._content[member.header_offset + 26 : member.header_offset + 30]
            start = member.header_offset + 30 + sum(struct.unpack("<HH", lengths))
            return self._content[start : start + member.file_size]
        content = self._archive.read(member)  # `read` verifies the checksum.
        if member.compress_type == zipfile.ZIP_STORED:  # as in all files of PyTorch
            self._verified.add(member.filename)
        else:
            self._budget.spend(len(content))
        return content

    def parameter(self, tensor: Any, *_: Any) -> Any:
        """Stand in for PyTorch's `_rebuild_parameter`: return the parameter's tensor unchanged."""
        return tensor


class _Unpickler(pickle.Unpickler):
    """An unpickler restricted to tensors, `argparse.Namespace` and Python's basic types."""

    def __init__(self, file: io.BytesIO, storages: _Storages):
        super().__init__(file)
        # A stand-in for the argparse.Namespace that some training code saves beside the weights. A
        # pickle can set attributes of this class, so each file gets a class of its own.
        options = type("Options", (), {})
        self._allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): storages.tensor,
            ("torch._utils", "_rebuild_parameter"): storages.parameter,
            ("argparse", "Namespace"): options,
            **{("torch", name): _Type(name) for name in TYPES},
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed global, or raise `UserError` for any other name."""
        if (module, name) not in self._allowed:
            kind = "dense tensor of a supported type" if module.startswith("torch") else "tensor"
            raise UserError(
                f"the file requires {module}.{name}, which is not a {kind}; no code of the file "
                "was run. Save a state_dict of floating-point tensors instead"
            )
        return self._allowed[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the storage for a persistent id `("storage", type, key, device, elements)`."""
        _, kind, key, *_ = pid
        return _Storage(kind, str(key))


def _check_pickle(content: bytes) -> None:
    """Reject a pickle with a memo index above the pickle's size, which would allocate much memory.

    Raises:
        ValueError: The pickle is damaged, or has a memo index above its size in bytes.
    """
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise ValueError(
                f"memo index {argument} exceeds the pickle's size, {len(content)} bytes"
            )


def read_torch(content: bytes) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the arrays of a PyTorch file by name, and notes on other models in the file.

    From a training checkpoint, the arrays under `model`, `state_dict` or `module` are returned. A
    checkpoint with none of the keys `model`, `state_dict` and `module` must hold a single model.

    Args:
        content: The bytes of the file.

    Raises:
        UserError: The file names a function or type that is not allowed, or holds several models or
            none.
        ValueError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError: The file is damaged.
    """
    if not content:
        raise UserError("the file is empty: copy or download it again")
    if not zipfile.is_zipfile(io.BytesIO(content)):
        if content.startswith(b"PK"):
            raise UserError("the end of the file is missing: copy or download it again")
        raise UserError(
            "the file is not an archive of PyTorch 1.6 or later: load and save it with PyTorch"
        )
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        budget = Budget(len(content))
        check_members(archive, budget)
        (description,) = (n for n in archive.namelist() if n.rsplit("/", 1)[-1] == "data.pkl")
        folder = description.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("the numbers in the file are big-endian, which is not supported")
        pickled = archive.read(description)
        _check_pickle(pickled)
        storages = _Storages(content, archive, f"{folder}data/", budget)
        tree = _Unpickler(io.BytesIO(pickled), storages).load()
    if not isinstance(tree, dict):
        kind = type(tree).__name__
        raise UserError(f"the file holds a {kind}, not a dict of named arrays: save a state_dict")
    _check_tree(tree)
    tree, notes = _model_in(tree)
    if not _is_state(tree):
        keys = ", ".join(map(str, list(tree)[:5])) or "none"
        raise UserError(f"the file holds no named arrays; its first keys are {keys}")
    return renamed(_arrays_in(tree), lambda name: WRAPPED.sub("", name)), notes


def renamed(
    arrays: Iterable[tuple[str, np.ndarray]], rename: Callable[[str], str]
) -> dict[str, np.ndarray]:
    """Return arrays under the names that the function ``rename`` gives them.

    Raises:
        UserError: Two arrays get the same name.
    """
    plain: dict[str, np.ndarray] = {}
    for name, array in arrays:
        short = rename(name)
        if short in plain:
            raise UserError(f"the file holds {short} twice, once as {name}")
        plain[short] = array
    return plain


def _check_tree(tree: dict[Any, Any]) -> None:
    """Reject nested dicts that are cyclic, too deep or too large to traverse.

    Raises:
        ValueError: The number of items exceeds `MOST_ITEMS`, or the depth exceeds `DEEPEST`.
    """
    todo, items = [(tree, 0)], 0
    while todo:
        inner, depth = todo.pop()
        items += len(inner)
        if items > MOST_ITEMS or depth > DEEPEST:
            raise ValueError(
                "nested dicts are too deep or too large: the file is damaged, or not a checkpoint"
            )
        todo += [(value, depth + 1) for value in inner.values() if isinstance(value, dict)]


def _model_in(tree: dict[Any, Any]) -> tuple[dict[Any, Any], tuple[str, ...]]:
    """Return the weights to use from a training checkpoint, and notes on its other weights.

    Raises:
        UserError: The checkpoint holds several models, and the keys of `USUAL` select none or more
            than one.
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
                f"the file holds several models: {', '.join(map(str, models))}; save one "
                "of them in another file: "
                f"torch.save(torch.load(file){path}[{models[-1]!r}], other_file)"
            )
        (used,) = usual
        if others := [str(key) for key in models if key != used]:
            notes += (
                f"the weights {used!r} are used, but not {', '.join(map(repr, others))}; to use "
                f"{others[0]!r}: torch.save(torch.load(file){path}[{others[0]!r}], other_file)",
            )
        tree, path = inner[used], f"{path}[{used!r}]"
    return tree, notes


def _is_state(tree: dict[Any, Any]) -> bool:
    """Return True if a dict directly contains arrays."""
    return any(isinstance(value, np.ndarray) for value in tree.values())


def _holds(tree: dict[Any, Any], names: str) -> bool:
    """Return True if a dict, or one nested in it, has array names that match a pattern."""
    if _is_state(tree):
        return any(re.fullmatch(names, str(name)) for name in tree)
    return any(isinstance(value, dict) and _holds(value, names) for value in tree.values())


def _arrays_in(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield the dotted name and the array of each leaf in nested dicts."""
    for key, value in tree.items():
        if isinstance(value, np.ndarray):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict):
            yield from _arrays_in(value, f"{prefix}{key}.")
