"""Where the examples of a shard lie: byte offsets and lengths, from its headers alone."""

import os
import struct
import tarfile
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from can_jax.data.files import IMAGE_NAME, RandomFile, open_stream

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
        header = file.read(place, HEADER)
        if len(header) < HEADER:
            problem = f"is cut off at byte {place}"
            break
        length, check = struct.unpack("<QI", header)
        if masked_crc32c(header[:8]) != check:
            problem = f"has no TFRecord at byte {place} (damaged, or compressed)"
            break
        if place + HEADER + length + FOOTER > file.size:
            problem = f"is cut off: its record at byte {place} is not whole"
            break
        offsets.append(place + HEADER)
        lengths.append(length)
        place += HEADER + length + FOOTER
    return _found(offsets, lengths, [-1] * len(offsets), problem)


def scan_tar(path: str) -> Found:
    """Every image of an uncompressed tar.

    Members that share a name up to the first dot are one example, as in WebDataset: its first image
    is used, and the number in its member `.cls`, if there is one, is its label.
    """
    file = RandomFile(path)
    offsets: list[int] = []
    lengths: list[int] = []
    labels: list[int] = []
    problem = None
    key, image, label = None, None, -1  # of the example whose members are being read

    def close() -> None:
        if image:
            offsets.append(image.offset_data)
            lengths.append(image.size)
            labels.append(label)

    try:
        with open_stream(path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # which would otherwise keep every header
                folder, name = os.path.split(member.name)
                if not member.isfile() or name.startswith("."):
                    continue
                if member.offset_data + member.size > file.size:
                    problem = f"is cut off: its member {member.name} is not whole"
                    break
                if key != (key := (folder, name.split(".")[0])):
                    close()
                    image, label = None, -1
                if name.lower().endswith(".cls"):
                    label = _number(file.read(member.offset_data, member.size))
                elif image is None and IMAGE_NAME.search(name):
                    image = member
            if not problem and file.read(tar.offset, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                problem = f"is cut off: it has no end mark at byte {tar.offset}"
    except (tarfile.TarError, EOFError) as error:
        problem = f"is no whole uncompressed tar: {error}"
    close()
    return _found(offsets, lengths, labels, problem)


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
