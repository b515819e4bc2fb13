"""Readers and writers of npz and npy files. The readers are safe for untrusted files.

The package reads all npz and npy files with this module, which loads no pickled objects. A
compressed file of a few megabytes can expand to gigabytes. Before `read_npz` expands a file, it
checks the expanded size stated in the file against a limit. The limit depends on the file's size
and the machine's memory; see `Budget`.
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

EXPANSION = 100  # the largest ratio; flat-color images expand by 50, photographs by less than 5
FLOOR = 2**28  # bytes to which even an archive of zeros may expand, if they fit in memory
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # other methods expand without a bound
HEADER = 2**16  # the maximum bytes of an npy file's header
VERSIONS = ((1, 0), (2, 0), (3, 0))


def memory() -> int:
    """Return the physical memory of this machine in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Budget:
    """A limit on the number of bytes to which a compressed file may expand.

    Args:
        size: The size of the file in bytes.

    Attributes:
        most: The limit in bytes: 100 times ``size`` or 256 MiB, whichever is larger, but not more
            than the machine's memory.
    """

    def __init__(self, size: int):
        self._size = size
        self.most = min(max(EXPANSION * size, FLOOR), memory())
        self._used = 0

    def spend(self, count: int) -> None:
        """Count bytes before they are allocated.

        Args:
            count: The number of bytes, at least 0.

        Raises:
            UserError: The sum of all counts exceeds the limit, or ``count`` is negative.
        """
        self._used += count
        if count < 0 or self._used > self.most:
            raise UserError(
                f"the file would expand to at least {self._used} bytes, which is too much for a "
                f"file of {self._size} bytes: the limit is {self.most} bytes"
            )


def check_members(archive: zipfile.ZipFile, budget: Budget) -> None:
    """Reject a zip archive whose members would expand to too large a total size.

    The zip's central directory states the size of each member, and `zipfile` reads no more bytes
    than this size.

    Raises:
        UserError: The total exceeds the budget, or a member is compressed by a method other than
            deflate.
    """
    for member in archive.infolist():
        if member.compress_type not in METHODS:
            raise UserError(
                f"{member.filename!r} is compressed by zip's method {member.compress_type}; only "
                "stored and deflated members can be read"
            )
        budget.spend(member.file_size)


def read_npz(source: Any) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file by name.

    Args:
        source: The path of the file, or its content as bytes.

    Raises:
        OSError: The file cannot be opened.
        UserError: The file cannot be read, is damaged, would expand too much, or holds Python
            objects.
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
            message = f"the file is not an npz file of plain arrays: {one_line(error)}"
            raise UserError(message) from error


def npz_shapes(path: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of an npz file by name, without reading the arrays.

    Raises:
        OSError: The file cannot be read.
        UserError: The file is damaged or holds Python objects.
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
    """Open a path, or wrap bytes, as a binary stream."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    with epath.Path(source).open("rb") as file:
        yield file


def _arrays(archive: zipfile.ZipFile) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each array and its name, after checking that the stated shape matches the data size."""
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        with archive.open(member) as file:
            try:
                shape, dtype, length = _header(file)
            except (UserError, ValueError) as error:
                raise UserError(f"array {name!r}: {error}") from error
        stated = math.prod(shape) * dtype.itemsize
        if stated != member.file_size - length:
            held = member.file_size - length
            raise UserError(f"array {name!r} should hold {stated} bytes, but holds {held}")
        with archive.open(member) as file:
            yield name, np.lib.format.read_array(file, allow_pickle=False)


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return the shape and dtype in the header of an npy file, and the header's length in bytes.

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
        raise UserError("arrays of Python objects are not loaded, for safety")
    if any(side < 0 for side in shape):
        raise ValueError(f"the shape {shape} has a negative dimension")
    return shape, dtype, content.tell()


def map_npy(path: Any) -> np.ndarray:
    """Return the array in an npy file, memory-mapped for reading.

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
    """Create an npy file of a one-dimensional array, and return it memory-mapped for writing.

    Args:
        path: The local path of the file.
        dtype: The dtype of the array.
        rows: The length of the array.

    Raises:
        OSError: The file cannot be written.
    """
    return np.lib.format.open_memmap(path, "w+", dtype, (rows,))


class Column(NamedTuple):
    """An array for `write_npz`: its dtype, its shape, and its parts along the first axis."""

    dtype: np.dtype
    shape: tuple[int, ...]
    parts: Iterable[np.ndarray]


def write_npz(path: Any, columns: Mapping[str, Column]) -> None:
    """Write an npz file part by part, so that its arrays need not fit into memory.

    Args:
        path: The local path of the file.
        columns: The arrays to write, by name; see `Column`.

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
