"""Readers of gzip, zlib, bzip2, xz and zstd files as streams of decompressed bytes."""

import bz2
import io
import lzma
import zlib
from typing import Any

from can_jax.data.formats.tar import compression_of
from can_jax.utils.errors import UserError
from can_jax.utils.extras import install_command

BLOCK = 2**18  # decompressed bytes read at once
INPUT = 2**17  # compressed bytes read at once; zlib copies the unread rest after each block
WINDOW_BITS = {"zlib": 15, "gzip": 31}  # the `wbits` argument of zlib's decompressor


def expanded(file: io.BufferedReader) -> Any:
    """Return a stream of a file's content, decompressed if its first bytes identify a supported
    compression.

    Args:
        file: The open file, positioned at its start; compressed or not.

    Raises:
        UserError: The compression is not supported, or needs a package that is not installed.
    """
    start = file.peek(8)[:8]
    kind = compression_of(start)
    if kind is None:
        return file
    if kind == "zstd":
        return _zstd(file)
    if kind in WINDOW_BITS:
        return _buffered(_Zlib(file, WINDOW_BITS[kind]))
    openers = {"bzip2": bz2.BZ2File, "xz": lzma.LZMAFile}
    if kind not in openers:
        raise UserError(
            f"{kind} compression is not supported: compress the shards with gzip or zstd"
        )
    return _buffered(openers[kind](file))


def _zstd(file: io.BufferedReader) -> Any:
    try:
        from backports.zstd import ZstdFile
    except ModuleNotFoundError as error:
        raise UserError(
            f"reading zstd requires backports.zstd: {install_command('zstd')}"
        ) from error
    return _buffered(ZstdFile(file))


def _buffered(stream: Any) -> io.BufferedReader:
    return io.BufferedReader(_Blocks(stream), BLOCK)


class _Blocks(io.RawIOBase):
    """A stream that reads at most `BLOCK` bytes at once from another stream.

    Python's decompressors allocate a buffer of the requested size before they read, and a damaged
    record may state a length of gigabytes.

    Args:
        stream: The stream of decompressed bytes.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._stream.readinto(memoryview(buffer)[:BLOCK])


class _Zlib(io.RawIOBase):
    """A stream of the decompressed content of a zlib or gzip file.

    TensorFlow writes zlib files with its option ZLIB. A gzip file may have several members.
    `GzipFile` of Python 3.11 reads 8 KB at a time, and takes 1.4 times as long as this class.

    Args:
        file: The compressed file, positioned at its start.
        bits: The window bits of the format, from `WINDOW_BITS`.
    """

    def __init__(self, file: io.BufferedReader, bits: int):
        self._file, self._bits = file, bits
        self._expander, self._unread = zlib.decompressobj(bits), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = b""
        while not content:
            if self._expander.eof and not self._next_member():
                break
            rest = self._unread or self._file.read(INPUT)
            if not rest:
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            content = self._expander.decompress(rest, len(buffer))
            self._unread = self._expander.unconsumed_tail
        buffer[: len(content)] = content
        return len(content)

    def _next_member(self) -> bool:
        """Prepare to read the next member of a gzip file, and return whether there is one. Zero
        bytes after a member are skipped as padding, as in `GzipFile`."""
        if self._bits != WINDOW_BITS["gzip"]:
            return False
        rest = self._expander.unused_data
        while not (rest := rest.lstrip(b"\0")):
            if not (rest := self._file.read(INPUT)):
                return False
        self._expander, self._unread = zlib.decompressobj(self._bits), rest
        return True
