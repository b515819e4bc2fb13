"""A reader of tar members that continues after damaged headers."""

import re
import sys
import tarfile
from collections.abc import Iterator
from typing import Any

from can_jax.data.formats.scan import name_gaps

BLOCK = tarfile.BLOCKSIZE
# Record sizes in bytes; `tar -b` pads a tar to a multiple of one of them. They are multiples of the
# usual 20 blocks, or powers of two. Powers below 32 KiB are left out, because a hole of one page
# would pass for padding.
RECORDS = (
    *range(tarfile.RECORDSIZE, 2**20 + 1, tarfile.RECORDSIZE),
    *(BLOCK << power for power in range(6, 12)),
)
LONGEST_HEADER = 2**20  # the maximum bytes of a member's headers, with long names and attributes
END_ZEROS = 2**20  # zeros after the last member are reported only beyond this number of bytes
# Patterns of the first bytes of compressed files. Such files can only be read sequentially.
COMPRESSED = {
    rb"\x1f\x8b": "gzip", rb"BZh\d1AY&": "bzip2", rb"\xfd7zXZ": "xz", rb"\x28\xb5\x2f\xfd": "zstd",
    rb"\x04\x22\x4d\x18": "lz4", rb"\x78[\x01\x9c\xda]": "zlib",
}  # fmt: skip

# In the header of a regular file, `FIELDS` matches the fields from mode to type and captures the
# octal size and checksum. `DEVICES` matches the two device numbers. `tarfile` parses headers in any
# other notation.
FIELDS = re.compile(
    rb"(?:[0-7]{7}[ \0]|[0-7]{6} \0){3}([0-7]{11})[ \0][0-7]{11}[ \0]([0-7]{6})[ \0]{2}0"
)
DEVICES = re.compile(rb"(?:[0-7]{7}[ \0]|[0-7]{6} \0|\0{8}){2}")


def compression_of(start: bytes) -> str | None:
    """Return the name of the compression that the first bytes of a file identify, or None."""
    return next((kind for magic, kind in COMPRESSED.items() if re.match(magic, start)), None)


def compressed_problem(kind: str) -> str:
    """Return a phrase that names the compression of a shard and advises how to use the shard."""
    advice = "decompress it"
    if kind != "lz4":
        advice += (
            ", or stream it in training by config.data.streaming=True and config.data.examples=N, "
            "the approximate number of images"
        )
    return f"is compressed ({kind}): {advice}"


def open_tar(file: Any, mode: str) -> tarfile.TarFile:
    """Open a tar for iteration with `Members`.

    Args:
        file: The binary file object of the tar, positioned at its start.
        mode: The mode for `tarfile.open`: `r:` for a seekable file, `r|` for a stream.

    Raises:
        tarfile.TarError: The file is empty, or its first header is incomplete or malformed.
    """

    class Header(tarfile.TarInfo):
        """A tar member whose ``offset`` is the start of its first header block, which can be a pax
        or GNU long-name header."""

        invalid = False  # whether any block was not a valid header

        @classmethod
        def frombuf(cls, buf: Any, encoding: Any, errors: Any) -> "Header":
            return _plain(cls, buf, encoding, errors) or super().frombuf(buf, encoding, errors)

        @classmethod
        def _frombuf(cls, buf: Any, encoding: Any, errors: Any, **options: Any) -> "Header":
            # Newer versions of Python call this method instead of `frombuf`.
            member = _plain(cls, buf, encoding, errors)
            return member or super()._frombuf(buf, encoding, errors, **options)  # type: ignore[misc]

        @classmethod
        def fromtarfile(cls, tar: tarfile.TarFile) -> "Header":
            if not isinstance(tar.fileobj, _Bounded):
                tar.fileobj = _Bounded(tar.fileobj)
            start = tar.fileobj.tell()
            tar.fileobj.left = LONGEST_HEADER
            try:
                member = super().fromtarfile(tar)
            except tarfile.InvalidHeaderError:  # type: ignore[attr-defined]
                Header.invalid = True
                raise
            finally:
                tar.fileobj.left = sys.maxsize
            member.offset = start
            return member

    return tarfile.open(  # type: ignore[call-overload]
        fileobj=file, mode=mode, ignore_zeros=True, tarinfo=Header
    )


def _plain(cls: Any, block: bytes, encoding: str, errors: str) -> Any:
    """Return the tar member that the header block of a regular file describes.

    The result is None if the block is incomplete, does not match the patterns `FIELDS` and
    `DEVICES`, or has a wrong checksum.

    `tarfile` parses any header, but is several times slower and would limit the rate of a stream.
    Only name, size and checksum are set; the other fields have their default values.

    Args:
        cls: The class of the member.
        block: The header block, normally of 512 bytes.
        encoding, errors: The arguments of `bytes.decode` for the name.
    """
    fields = FIELDS.match(block, 100)
    if fields is None or len(block) != BLOCK or not DEVICES.match(block, 329):
        return None
    # The checksum counts its own eight bytes as spaces.
    if sum(block) - sum(block[148:156]) + 8 * ord(" ") != int(fields[2], 8):
        return None
    name, prefix = (
        field.split(b"\0", 1)[0].decode(encoding, errors) for field in (block[:100], block[345:500])
    )
    member = cls(f"{prefix}/{name}" if prefix else name)
    member.size, member.chksum = int(fields[1], 8), int(fields[2], 8)
    return member


class _Bounded:
    """A file object that limits how many bytes `tarfile` reads for one header.

    A header may be followed by long names, attributes or sparse maps of any stated length, which
    `tarfile` would read into memory. The headers in a compressed tar of a few megabytes can state
    lengths of gigabytes.

    Args:
        file: The binary file object of the tar.
    """

    def __init__(self, file: Any):
        self._file, self.left = file, sys.maxsize

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes, or all remaining bytes if ``size`` is negative.

        Raises:
            tarfile.SubsequentHeaderError: The headers of one member exceed `LONGEST_HEADER` bytes.
        """
        limited = self.left < sys.maxsize
        if limited and not 0 <= size <= self.left:
            raise tarfile.SubsequentHeaderError("the headers of a member are too long")  # type: ignore[attr-defined]
        content = self._file.read(size)
        if limited:
            self.left -= len(content)
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _bytes_from(start: int, end: int) -> str:
    return f"{end - start} bytes at offset {start}"


class Members:
    """An iterator over the members of a tar, in a single pass.

    `tarfile` alone stops at a damaged header, whereas `Members` resumes at the next header with a
    valid checksum.

    Args:
        tar: The open tar, as returned by `open_tar`.
        size: The size of the file in bytes; unlimited by default. Iteration ends before a regular,
            non-sparse member that extends beyond ``size`` bytes.
    """

    def __init__(self, tar: tarfile.TarFile, size: int = sys.maxsize):
        self.tar: Any = tar
        self._size = size
        self._gaps: list[tuple[int, int]] = []
        self._zeros: list[tuple[int, int]] = []  # gaps that may be padding
        self._ending: str | None = None
        self._damaged = False  # whether a header after the last member was invalid

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        start = 0  # the start of the current tar, since a file can hold several concatenated tars
        end = 0  # the end of the last member that was read
        while (member := self._next()) is not None:
            if member.offset > end:
                mark = 2 * BLOCK  # bytes of zeros that end every tar
                if end and not self._damaged and member.offset - end >= mark:
                    if not self._is_padded(start, end + mark, member.offset):
                        self._zeros.append((end, member.offset))
                    start = member.offset
                else:
                    self._gaps.append((end, member.offset))
            end, self._damaged = self.tar.offset, False
            # A sparse member takes fewer bytes than its size.
            sized = member.isreg() and not member.issparse()
            if sized and member.offset_data + member.size > self._size:
                self._ending = f"is truncated: the member at byte {member.offset} is incomplete"
                return
            yield member
        self._finish(end)

    @property
    def problem(self) -> str | None:
        """A phrase that describes all damage and its byte ranges, or None; complete only when the
        iteration has ended."""
        phrases = []
        if self._gaps:
            ranges = name_gaps(self._gaps, _bytes_from)
            phrases.append(f"is damaged: skipped {ranges} without a valid header")
        if self._zeros:
            ranges = name_gaps(self._zeros, _bytes_from)
            phrases.append(
                f"has only zeros in {ranges}, which are skipped: either padding between "
                "concatenated tars, or overwritten members"
            )
        if self._ending:
            phrases.append(self._ending)
        return "; it ".join(phrases) or None

    def _next(self) -> tarfile.TarInfo | None:
        """Return the next member with a valid header, or None at the end of the tar."""
        tar = self.tar
        tar.members = []  # otherwise `tarfile` retains every header in memory
        if tar.firstmember is not None:
            member, tar.firstmember = tar.firstmember, None
            return member
        while self._seek():
            try:
                return tar.tarinfo.fromtarfile(tar)
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                tar.offset += BLOCK
            except tarfile.InvalidHeaderError:  # type: ignore[attr-defined]
                self._damaged = True
                tar.offset += BLOCK
            except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
                return None
            except (tarfile.HeaderError, ValueError, OverflowError):
                # The header of a long name or of attributes is valid, but its content is not.
                self._damaged = True
                tar.offset = -(-max(tar.fileobj.tell(), tar.offset + BLOCK) // BLOCK) * BLOCK
        return None

    def _seek(self) -> bool:
        """Seek to the offset of the next header, and return whether the file extends to this
        offset."""
        file, offset = self.tar.fileobj, self.tar.offset
        if file.tell() >= offset:
            # A position beyond the offset means that the file ends within a block.
            return bool(file.tell() == offset)
        file.seek(offset - 1)
        return bool(file.read(1))

    def _is_padded(self, start: int, end: int, after: int) -> bool:
        """Return whether the zeros between two concatenated tars pad the first tar to a multiple of
        a size in `RECORDS`."""
        padding = after - end
        return not padding or any(
            padding < record and (after - start) % record == 0 for record in RECORDS
        )

    def _finish(self, end: int) -> None:
        """Record any damage after the last member, where an intact tar contains only zeros."""
        rest = self.tar.fileobj.tell() - end
        if not end and self.tar.tarinfo.invalid:
            self._ending = "is not a tar: it has no valid header"
        elif self._damaged:
            self._gaps.append((end, end + rest))
        elif rest < BLOCK:
            self._ending = f"is truncated: the end-of-archive marker is missing at byte {end}"
        elif rest > END_ZEROS:
            self._ending = f"has only zeros in its last {rest} bytes, from byte {end} on"
