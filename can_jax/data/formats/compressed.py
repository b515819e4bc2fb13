"""Compressed files as streams: gzip, zlib, bzip2, xz and zstd."""

import bz2
import gzip
import io
import lzma
import zlib
from typing import Any

from can_jax.data.formats.tar import compression_of
from can_jax.utils.errors import UserError
from can_jax.utils.extras import install_command

BLOCK = 2**18  # compressed bytes read at once


def expanded(file: io.BufferedReader) -> Any:
    """Return a stream of the content of a file, expanded if its first bytes show a compression.

    Args:
        file: The open file, at its start.

    Raises:
        UserError: The compression needs a package that is not installed, or is not supported.
    """
    start = file.peek(8)[:8]
    kind = compression_of(start)
    if kind is None:
        return file
    if kind == "zstd":
        return _zstd(file)
    openers = {"gzip": gzip.GzipFile, "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile, "zlib": _Zlib}
    if kind not in openers:
        raise UserError(f"{kind} is not read: compress the shards with gzip or zstd")
    opened = openers[kind](fileobj=file) if kind == "gzip" else openers[kind](file)
    return _buffered(opened)


def _zstd(file: io.BufferedReader) -> Any:
    try:
        from backports.zstd import ZstdFile
    except ModuleNotFoundError as error:
        raise UserError(
            f"backports.zstd is not installed, which reads zstd: {install_command('zstd')}"
        ) from error
    return _buffered(ZstdFile(file))


def _buffered(stream: Any) -> io.BufferedReader:
    return io.BufferedReader(_Blocks(stream), BLOCK)


class _Blocks(io.RawIOBase):
    """A stream that is read by at most `BLOCK` bytes at once.

    The readers of Python's compressions first allocate as much as they are asked for, and a damaged
    record may state a length of gigabytes.

    Args:
        stream: The stream of the expanded content.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._stream.readinto(memoryview(buffer)[:BLOCK])


class _Zlib(io.RawIOBase):
    """A stream of the content of a file in the format of zlib, as TensorFlow's option ZLIB writes.

    Args:
        file: The compressed file.
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
