"""TFRecord files: where their records are, whole or damaged, and their checksums."""

import struct
from collections.abc import Callable

import google_crc32c
import numpy as np

from can_jax.data.formats.scan import Found, found, name_gaps
from can_jax.data.formats.tar import compression_of
from can_jax.data.storage.reading import RandomFile

HEADER, FOOTER = 12, 4  # bytes of a record before its content: length and checksum; and after
SEARCH = 2**20  # bytes in which the next record is searched at once
WRONG_SUM = "the checksum of its record is wrong"


def masked_crc32c(data: bytes) -> int:
    """Return the checksum of TFRecord files: CRC-32C (RFC 3720), masked as TensorFlow does."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record_length(header: bytes) -> int | None:
    """Return the length that a record's first `HEADER` bytes state; None if they are not such."""
    if len(header) < HEADER:
        return None
    length, check = struct.unpack("<QI", header)
    return length if masked_crc32c(header[:8]) == check else None


def intact_content(record: bytes) -> bytes | None:
    """Return the content of a record, given with its footer; None if its checksum is wrong."""
    content = record[:-FOOTER]
    if len(record) < FOOTER or struct.unpack("<I", record[-FOOTER:])[0] != masked_crc32c(content):
        return None
    return content


def scan_tfrecord(path: str) -> Found:
    """Return every whole record of an uncompressed TFRecord file."""
    file = RandomFile(path)
    offsets: list[int] = []
    lengths: list[int] = []
    place, problems = 0, Problems()
    while place < file.size:
        length = record_length(file.read(place, HEADER))
        end = place + HEADER + (length or 0) + FOOTER
        if length is not None and end <= file.size:
            offsets.append(place + HEADER)
            lengths.append(length)
            place = end
            continue
        if place == 0 and (kind := compression_of(file.read(0, 8))):
            problems.ending = f"is compressed ({kind}): set config.data.streaming, or expand it"
            break
        after = next_record(file.read, place + 1, file.size)
        if after is None and length is not None:
            problems.ending = f"is cut off: its record at byte {place} is not whole"
        elif after is None:
            problems.ending = f"has no TFRecord at byte {place} (cut off, damaged, or compressed)"
        else:
            problems.gaps.append((place, after))
        place = after or file.size
    return found(offsets, lengths, [-1] * len(offsets), str(problems) or None)


class Problems:
    """Damaged places of a file, and how it ends."""

    def __init__(self) -> None:
        self.gaps: list[tuple[int, int]] = []
        self.ending = ""

    def __str__(self) -> str:
        said = []
        if self.gaps:
            places = name_gaps(self.gaps, "byte {} to {}".format)
            said.append(f"has no TFRecord at {places}, which is passed over")
        return "; it ".join([*said, *filter(None, [self.ending])])


def next_record(read: Callable[[int, int], bytes], place: int, size: int) -> int | None:
    """Return where the next record with a valid header begins, from a place on; None if nowhere.

    Args:
        read: Returns the bytes from an offset on.
        place: Where to begin.
        size: Of the file.
    """
    while place + HEADER + FOOTER <= size:
        block = read(place, SEARCH + HEADER)
        for start in candidates(block):
            length = record_length(block[start : start + HEADER])
            if length is not None and place + start + HEADER + length + FOOTER <= size:
                return place + start
        place += SEARCH
    return None


def candidates(block: bytes) -> list[int]:
    """Return where in a block the header of a record of less than 4 GiB can begin."""
    zero = np.frombuffer(block, np.uint8) == 0
    if len(zero) < HEADER:
        return []
    # The upper four of the eight bytes of the length are zeros, which are rare in images, and the
    # checksum is not zero, as it would be in a hole of zeros.
    four = [zero[i : len(zero) - 11 + i] for i in range(4, 12)]
    upper = four[0] & four[1] & four[2] & four[3]
    return np.flatnonzero(upper & ~(four[4] & four[5] & four[6] & four[7])).tolist()
