"""TFRecord files: record offsets, checksums and recovery after damage."""

import struct
from collections.abc import Callable

import numpy as np

from can_jax.data.formats.scan import ScanResult, found, name_gaps
from can_jax.data.formats.tar import compressed_problem, compression_of
from can_jax.data.storage.reading import open_random

HEADER = 12  # bytes before the content of a record: its length, and a checksum of the length
FOOTER = 4  # bytes after the content: its checksum
SEARCH = 2**20  # bytes searched for the next record at once
WRONG_SUM = "the checksum of the record is wrong"
ParseRecord = Callable[[bytes], tuple[bytes, int]]  # returns a record's encoded image and label


def masked_crc32c(data: bytes) -> int:
    """Return the masked CRC-32C (RFC 3720) of some bytes, which is the checksum in TFRecord
    files."""
    import google_crc32c  # Deferred, because only readers of TFRecords need it.

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record_length(header: bytes) -> int | None:
    """Return the content length in bytes that a TFRecord header states, or None if the header is
    incomplete or its checksum is wrong."""
    if len(header) < HEADER:
        return None
    length, check = struct.unpack("<QI", header)
    return length if masked_crc32c(header[:8]) == check else None


def intact_content(record: bytes) -> bytes | None:
    """Return the content of a record without its trailing checksum, or None if this checksum is
    wrong."""
    content = record[:-FOOTER]
    if len(record) < FOOTER or struct.unpack("<I", record[-FOOTER:])[0] != masked_crc32c(content):
        return None
    return content


def scan_tfrecord(path: str) -> ScanResult:
    """Return the byte range of every complete record with a valid header in an uncompressed
    TFRecord file.

    The checksum of a record's content is not verified. `intact_content` verifies this checksum when
    the record is read.
    """
    file = open_random(path)
    offsets: list[int] = []
    lengths: list[int] = []
    position, problems = 0, Problems()
    while position < file.size:
        length = record_length(file.read(position, HEADER))
        end = position + HEADER + (length or 0) + FOOTER
        if length is not None and end <= file.size:
            offsets.append(position + HEADER)
            lengths.append(length)
            position = end
            continue
        if position == 0 and (kind := compression_of(file.read(0, 8))):
            problems.ending = compressed_problem(kind)
            break
        resumed = next_record(file.read, position + 1, file.size)
        if resumed is None and length is not None:
            problems.ending = f"is truncated: the record at byte {position} is incomplete"
        elif resumed is None:
            problems.ending = (
                f"has no valid TFRecord from byte {position} on (truncated, damaged, or compressed)"
            )
        else:
            problems.gaps.append((position, resumed))
        position = resumed or file.size
    return found(offsets, lengths, [-1] * len(offsets), str(problems) or None)


class Problems:
    """The damage found in a TFRecord file; ``str()`` describes it in a phrase for messages.

    Attributes:
        gaps: The damaged byte ranges, as pairs of start and exclusive end.
        ending: A phrase that describes why scanning stopped before the end of the file, or "".
    """

    def __init__(self) -> None:
        self.gaps: list[tuple[int, int]] = []
        self.ending = ""

    def __str__(self) -> str:
        phrases = []
        if self.gaps:
            ranges = name_gaps(self.gaps, "bytes {} to {}".format)
            phrases.append(f"has no valid TFRecord at {ranges}, which are skipped")
        return "; it ".join([*phrases, *filter(None, [self.ending])])


def next_record(read: Callable[[int, int], bytes], position: int, size: int) -> int | None:
    """Return the offset of the next complete record with a valid header, or None if there is none.

    Args:
        read: A function that takes an offset and a length, and returns the bytes there; fewer at
            the end of the file.
        position: The offset in bytes at which the search starts.
        size: The size of the file in bytes.
    """
    while position + HEADER + FOOTER <= size:
        block = read(position, SEARCH + HEADER)
        for start in candidates(block):
            length = record_length(block[start : start + HEADER])
            if length is not None and position + start + HEADER + length + FOOTER <= size:
                return position + start
        position += SEARCH
    return None


def candidates(block: bytes) -> list[int]:
    """Return the offsets in a block of bytes at which the header of a record shorter than 4 GiB can
    start."""
    zero = np.frombuffer(block, np.uint8) == 0
    if len(zero) < HEADER:
        return []
    # The upper four of the eight length bytes are zeros, which are rare in images. Requiring a
    # nonzero checksum excludes the holes of a sparse file, which read as zeros.
    four = [zero[i : len(zero) - 11 + i] for i in range(4, 12)]
    upper = four[0] & four[1] & four[2] & four[3]
    return np.flatnonzero(upper & ~(four[4] & four[5] & four[6] & four[7])).tolist()
