"""Readers of gzip, zlib, bzip2, xz and zstd files as streams of decompressed bytes."""

import bz2
import gzip
import io
import lzma
import zlib
from typing import Any

from can_jax.data.formats.tar import compression_of
from can_jax.utils.errors import UserError
from can_jax.utils.extras import install_command

BLOCK = 2**18  # bytes read at once


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
    openers = {"gzip": gzip.GzipFile, "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile, "zlib": _Zlib}
    if kind not in openers:
        raise UserError(
            f"{kind} compression is not supported: compress the shards with gzip or zstd"
        )
    opened = openers[kind](fileobj=file) if kind == "gzip" else openers[kind](file)
    return _buffered(opened)


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
    """A stream of the decompressed content of a zlib file, which TensorFlow writes with the option
    ZLIB.

    Args:
        file: The compressed file, positioned at its start.
    """

    def __init__(self, file: io.BufferedReader):
        self._file, self._expander = file, zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = b""
        while not content and not self._expander.eof:
            rest = self._expander.unconsumed_tail or self._file.read(BLOCK)
            if not rest:
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            content = self._expander.decompress(rest, len(buffer))
        buffer[: len(content)] = content
        return len(content)
