"""Safe readers of untrusted npz and npy files: bounded in size, without pickled objects.

Every npz and npy file is read here. A compressed file of a few megabytes can state gigabytes.
Before anything is unpacked, the stated sizes are therefore compared with the file's own size and
the machine's memory.
"""

import io
import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from can_jax.utils.errors import UserError, one_line

EXPANSION = 100  # the allowed ratio; flat-color images compress by 50, photographs by less than 5
FLOOR = 2**28  # bytes to which any archive can expand, such as one of zeros, if they fit in memory
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # other methods expand without a bound
HEADER = 2**16  # the maximum bytes of an npy file's header
VERSIONS = ((1, 0), (2, 0), (3, 0))


def memory() -> int:
    """Return the physical memory of this machine in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Budget:
    """A limit on the bytes to which the content of a file can expand.

    Args:
        size: The size of the file in bytes.

    Attributes:
        most: The limit in bytes.
    """

    def __init__(self, size: int):
        self._size = size
        self.most = min(max(EXPANSION * size, FLOOR), memory())
        self._used = 0

    def spend(self, count: int) -> None:
        """Subtract bytes that are about to be allocated.

        Raises:
            UserError: The limit is exceeded.
        """
        self._used += count
        if count < 0 or self._used > self.most:
            raise UserError(
                f"its content states {self._used} bytes or more, which is too much for a file of "
                f"{self._size} bytes: the limit is {self.most}"
            )


def check_members(archive: zipfile.ZipFile, budget: Budget) -> None:
    """Reject an archive whose members state too large a total size.

    `zipfile` never reads more of a member than its stated size.

    Raises:
        UserError: The total is too large, or a member uses a compression method without a bound.
    """
    for member in archive.infolist():
        if member.compress_type not in METHODS:
            raise UserError(
                f"{member.filename!r} is compressed by zip's method {member.compress_type}; only "
                "stored and deflated members are read"
            )
        budget.spend(member.file_size)


def read_npz(source: Any) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file by name.

    Args:
        source: The path of the file, or its content as bytes.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: The file is damaged, states too much content for its size, or holds objects.
    """
    with _stream(source) as file:
        try:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            with zipfile.ZipFile(file) as archive:
                check_members(archive, Budget(size))
                return dict(_arrays(archive))
        except UserError:
            raise
        except Exception as error:  # an untrusted file can cause any type of exception
            raise UserError(f"it is not an npz file of plain arrays: {one_line(error)}") from error


def npz_shapes(path: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of an npz file by name, from their headers alone.

    Raises:
        OSError: The file cannot be read.
        UserError: The file is damaged.
    """
    with _stream(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                shapes = {}
                for member in archive.infolist():
                    with archive.open(member) as array:
                        shapes[member.filename.removesuffix(".npy")] = _header(array)[0]
                return shapes
        except OSError:
            raise
        except Exception as error:  # an untrusted file can cause any type of exception
            raise UserError(f"{path} is not an npz file: {one_line(error)}") from error


@contextmanager
def _stream(source: Any) -> Iterator[Any]:
    """Yield the content of a path or of bytes as a binary stream."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    with epath.Path(source).open("rb") as file:
        yield file


def _arrays(archive: zipfile.ZipFile) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and content of each array, after comparing its stated with its actual size."""
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        with archive.open(member) as file:
            try:
                shape, dtype, length = _header(file)
            except (UserError, ValueError) as error:
                raise UserError(f"array {name!r}: {error}") from error
        stated = math.prod(shape) * dtype.itemsize
        if stated != member.file_size - length:
            raise UserError(f"{name!r} states {stated} bytes, and has {member.file_size - length}")
        with archive.open(member) as file:
            yield name, np.lib.format.read_array(file, allow_pickle=False)


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return the shape and dtype of the array in an npy file, and the length of the header in
    bytes.

    Raises:
        ValueError: The header is invalid.
        UserError: The array holds Python objects.
    """
    start = file.read(HEADER)
    content = io.BytesIO(start)
    version = np.lib.format.read_magic(content)
    if version not in VERSIONS:
        raise ValueError(f"npy files of version {version} are not supported")
    # Version 3 differs from 2 only in the encoding of field names.
    read = np.lib.format.read_array_header_2_0
    if version == (1, 0):
        read = np.lib.format.read_array_header_1_0
    shape, _, dtype = read(content)
    if dtype.hasobject:
        raise UserError("it holds Python objects, which are not read")
    if any(side < 0 for side in shape):
        raise ValueError(f"{shape} is not the shape of an array")
    return shape, dtype, content.tell()


def map_npy(path: Any) -> np.ndarray:
    """Return the array in an npy file, memory-mapped; unused parts take no memory.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not an npy file, is truncated, or holds Python objects.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # an untrusted file can cause any type of exception
        raise ValueError(f"{path} is not an npy file: {one_line(error)}") from error


def create_npy(path: Any, dtype: Any, rows: int) -> np.ndarray:
    """Create an npy file of one column, and return it memory-mapped, to be written.

    Raises:
        OSError: The file cannot be written.
    """
    return np.lib.format.open_memmap(path, "w+", dtype, (rows,))


class Column(NamedTuple):
    """An array to write: its type, its shape, and its parts along the first axis."""

    dtype: np.dtype
    shape: tuple[int, ...]
    parts: Iterable[np.ndarray]


def write_npz(path: Any, columns: Mapping[str, Column]) -> None:
    """Write an npz file of arrays that do not fit into memory.

    Args:
        path: The local path of the file.
        columns: The arrays by name.

    Raises:
        OSError: The file cannot be written.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, (dtype, shape, parts) in columns.items():
            header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for part in parts:
                    file.write(part.astype(dtype).tobytes())
