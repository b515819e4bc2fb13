"""Read zip archives of arrays that may be anybody's: bounded in size, without pickled objects.

Every npz and npy file is read here. A compressed file of a few megabytes can state gigabytes, so
the sizes that an archive states are compared with its own size and the machine's memory before
anything is unpacked.
"""

import io
import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from etils import epath

from can_jax.utils.errors import UserError, one_line

EXPANSION = 100  # images of flat colors compress by 50, photographs by less than 5
FLOOR = 2**28  # bytes to which any archive may expand, such as one of masks that are all zeros
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others expand without a bound
HEADER = 2**16  # bytes of an npy file in front of its numbers
VERSIONS = ((1, 0), (2, 0), (3, 0))


def memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Budget:
    """The bytes that the content of a file may still take.

    Args:
        size: Bytes of the file.
    """

    def __init__(self, size: int):
        self._size = size
        self.most = min(max(EXPANSION * size, FLOOR), memory())
        self._used = 0

    def spend(self, count: int) -> None:
        """Count bytes that are about to be made.

        Raises:
            UserError: They are too many.
        """
        self._used += count
        if count < 0 or self._used > self.most:
            raise UserError(
                f"its content states {self._used} bytes or more, which is too much for a file of "
                f"{self._size} bytes: the limit is {self.most}"
            )


def check_members(archive: zipfile.ZipFile, budget: Budget) -> None:
    """Refuse an archive whose members would expand to too much, by the sizes that it states.

    `zipfile` reads no more of a member than its stated size.

    Raises:
        UserError: The sum is too large, or a member is compressed in a way without a bound.
    """
    for member in archive.infolist():
        if member.compress_type not in METHODS:
            raise UserError(
                f"{member.filename!r} is compressed by zip's method {member.compress_type}; only "
                "stored and deflated members are read"
            )
        budget.spend(member.file_size)


def read_npz(place: Any) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file by name.

    Args:
        place: A path, or the bytes of the file.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is damaged, too large for what it holds, or holds objects.
    """
    with _stream(place) as file:
        try:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            with zipfile.ZipFile(file) as archive:
                check_members(archive, Budget(size))
                return dict(_arrays(archive))
        except UserError:
            raise
        except Exception as error:  # of any kind, from a file that may be anything
            raise UserError(f"it is no npz file of plain arrays: {one_line(error)}") from error


@contextmanager
def _stream(place: Any) -> Iterator[Any]:
    if isinstance(place, bytes):
        yield io.BytesIO(place)
        return
    with epath.Path(place).open("rb") as file:
        yield file


def _arrays(archive: zipfile.ZipFile) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of an archive, each compared with the size of its member first."""
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
    """Return the shape and type of the array in an npy file, and the bytes of its header.

    Raises:
        ValueError: It is none.
        UserError: The array is one of Python objects.
    """
    start = file.read(HEADER)
    content = io.BytesIO(start)
    version = np.lib.format.read_magic(content)
    if version not in VERSIONS:
        raise ValueError(f"npy files of version {version} are not known")
    # Version 3 differs from 2 in the encoding of the names of fields alone.
    read = np.lib.format.read_array_header_2_0
    if version == (1, 0):
        read = np.lib.format.read_array_header_1_0
    shape, _, dtype = read(content)
    if dtype.hasobject:
        raise UserError("it holds Python objects, which are not read")
    if any(side < 0 for side in shape):
        raise ValueError(f"no array has the shape {shape}")
    return shape, dtype, content.tell()


def map_npy(place: Any) -> np.ndarray:
    """Return the array in an npy file, memory-mapped: what is not used takes no memory.

    Raises:
        OSError: It cannot be read.
        ValueError: It is none, is shorter than it states, or is of Python objects.
    """
    try:
        return np.load(place, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # of any kind, from a file that may be anything
        raise ValueError(f"{place} is no npy file: {one_line(error)}") from error
