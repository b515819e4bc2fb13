"""Where the examples of a shard lie: byte offsets and lengths, from its headers alone."""

import os
import struct
import sys
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from can_jax.data.files import IMAGE_NAME, RandomFile, open_file

HEADER, FOOTER = 12, 4  # bytes of a TFRecord before its content: length and check sum; and after


class Found(NamedTuple):
    """The examples of one shard.

    ``label`` is -1 where the headers do not tell. ``problem`` says at which byte the shard can no
    longer be read, if so; all before it is there.
    """

    offset: Int[np.ndarray, " examples"]
    length: Int[np.ndarray, " examples"]
    label: Int[np.ndarray, " examples"]
    problem: str | None = None


def scan_tfrecord(path: str) -> Found:
    """Every whole record of an uncompressed TFRecord file."""
    file = RandomFile(path)
    offsets, lengths, place, problem = [], [], 0, None
    while place < file.size:
        length = record_length(file.read(place, HEADER))
        if length is None:
            problem = f"has no TFRecord at byte {place} (cut off, damaged, or compressed)"
            break
        if place + HEADER + length + FOOTER > file.size:
            problem = f"is cut off: its record at byte {place} is not whole"
            break
        offsets.append(place + HEADER)
        lengths.append(length)
        place += HEADER + length + FOOTER
    return _found(offsets, lengths, [-1] * len(offsets), problem)


def record_length(header: bytes) -> int | None:
    """The length that the first `HEADER` bytes of a TFRecord state; None if they are not such."""
    if len(header) < HEADER:
        return None
    length, check = struct.unpack("<QI", header)
    return length if masked_crc32c(header[:8]) == check else None


def scan_tar(path: str) -> Found:
    """Every image of an uncompressed tar.

    Members that share a name up to the first dot are one example, as in WebDataset: its first image
    is used, and the number in its member `.cls`, if there is one, is its label.
    """
    size = RandomFile(path).size
    offsets: list[int] = []
    lengths: list[int] = []
    labels: list[int] = []
    problem = None
    try:
        with open_file(path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for image, label in examples_of_tar(tar, size):
                offsets.append(image.offset_data)
                lengths.append(image.size)
                labels.append(label)
            if lacks_end(tar):
                problem = f"is cut off: it has no end mark at byte {tar.offset}"
    except (tarfile.TarError, EOFError) as error:
        problem = f"is no whole uncompressed tar: {error}"
    return _found(offsets, lengths, labels, problem)


def examples_of_tar(
    tar: tarfile.TarFile,
    size: int = sys.maxsize,
    take: Callable[[Any], Any] = lambda member: member,
) -> Iterator[tuple[Any, int]]:
    """What is taken of the image of each example, and its label.

    Args:
        tar: open for reading, whether it can seek or not.
        size: of the file in bytes; nothing that goes beyond it is taken.
        take: called with the member of an image while the tar is at it.
    """
    key, image, label = None, None, -1
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # which would otherwise keep every header
        folder, name = os.path.split(member.name)
        if not member.isfile() or name.startswith("."):
            continue
        if member.offset_data + member.size > size:
            break
        if key != (key := (folder, name.split(".")[0])):
            if image is not None:
                yield image, label
            image, label = None, -1
        if name.lower().endswith(".cls"):
            content = tar.extractfile(member)
            label = _number(content.read() if content else b"")
        elif image is None and IMAGE_NAME.search(name):
            image = take(member)
    if image is not None:
        yield image, label


def lacks_end(tar: Any) -> bool:
    """Whether a tar that has been read to its end lacks the zeros that mark it."""
    return tar.fileobj.tell() < tar.offset + tarfile.BLOCKSIZE


def _found(offsets: list, lengths: list, labels: list, problem: str | None) -> Found:
    return Found(
        np.array(offsets, np.int64),
        np.array(lengths, np.int64),
        np.array(labels, np.int32),
        problem,
    )


def _number(text: bytes) -> int:
    """The label that a `.cls` member holds; -1 if it is no number."""
    try:
        return int(text)
    except ValueError:
        return -1


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 * (value & 1)
        table.append(value)
    return table


CRC_TABLE = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """The check sum of TFRecord files (RFC 3720, masked as TensorFlow does), for a few bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
