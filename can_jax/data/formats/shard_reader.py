"""Sequential readers of compressed and uncompressed shards. They resume reading after damage."""

import collections
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

from can_jax.data.formats.compressed import expanded
from can_jax.data.formats.records import (
    FOOTER,
    HEADER,
    SEARCH,
    WRONG_SUM,
    ParseRecord,
    candidates,
    intact_content,
    record_length,
)
from can_jax.data.formats.scan import NAMED_GAPS
from can_jax.data.formats.tar import Members, open_tar
from can_jax.data.formats.webdataset import Unused, base_kind, examples_of_tar, list_unused
from can_jax.data.storage.reading import LARGEST, of_storage, open_file, unreadable
from can_jax.data.storage.splits import shown
from can_jax.utils.errors import UserError, one_line

FIRST_SEARCH = 2**12  # bytes searched at once after damage; the number grows up to SEARCH
Read = Callable[[str], Iterator[tuple[bytes, int]]]
TOO_LARGE = f"images of more than {LARGEST} bytes"
NOT_FOLLOWED = "links, which are not followed in a stream"


class _Ahead:
    """A stream that can be moved back over the last bytes read from it.

    Args:
        stream: The binary stream to read, which need not be seekable.

    Attributes:
        place: The byte offset at which the next read starts.
    """

    def __init__(self, stream: Any):
        self._stream, self._ahead, self._at = stream, b"", 0
        self.place = 0

    def holds(self, length: int, back: int = 0) -> bool:
        """Return whether the stream contains ``length`` bytes from the offset ``place - back`` on.

        Bytes that are not buffered yet are read into the buffer.
        """
        missing = length - back - (len(self._ahead) - self._at)
        if missing > 0 and (more := self._stream.read(missing)):
            kept = max(0, self._at - back)
            self._ahead, self._at = self._ahead[kept:] + more, self._at - kept
            missing -= len(more)
        return missing <= 0

    def read(self, length: int) -> bytes:
        """Return ``length`` bytes, or fewer at the end of the stream."""
        self.holds(length)
        content = self._ahead[self._at : self._at + length]
        self._at += len(content)
        self.place += len(content)
        return content

    def give_back(self, count: int) -> None:
        """Move the stream back by ``count`` bytes, so that they are read again."""
        self._at -= count
        self.place -= count


class _Log:
    """A log of the problems of one shard, which does not repeat a line in later epochs.

    Args:
        path: The path of the shard, with which each line begins.
        reported: The set of lines already logged for any shard; updated in place.
    """

    def __init__(self, path: str, reported: set[str]):
        self._path, self._reported, self._places = path, reported, 0

    def __call__(self, text: str) -> None:
        """Log a line as a warning, unless it was logged before."""
        line = f"{shown(self._path)}{text}"
        if line not in self._reported:
            self._reported.add(line)
            logging.warning("%s", line)

    def place(self, text: str) -> None:
        """Log a damaged byte range, unless `NAMED_GAPS` ranges of this shard have been logged."""
        self._places += 1
        if self._places <= NAMED_GAPS:
            self(text)

    def finish(self) -> None:
        """Log the number of damaged byte ranges beyond the first `NAMED_GAPS`."""
        if self._places > NAMED_GAPS:
            self(f": {self._places - NAMED_GAPS} more damaged byte ranges")


def read_tfrecord(path: str, parse: ParseRecord, reported: set[str]) -> Iterator[tuple[bytes, int]]:
    """Yield the image and label of each record of a TFRecord file, compressed or not.

    For a record whose content has a wrong checksum, ``parse`` receives empty bytes. After a damaged
    header, reading resumes at the next valid header.

    Args:
        path: The path or URL of the file.
        parse: A function that returns the encoded image and the label of a record.
        reported: The set of lines already logged for any shard; updated in place.

    Raises:
        UserError: The file cannot be read, even after retries, or its compression is not supported.
    """
    log = _Log(path, reported)
    try:
        with open_file(path) as file:
            # A file whose first header has a valid checksum is not compressed, even if the record's
            # length looks like the first bytes of zlib.
            plain = record_length(file.peek(HEADER)[:HEADER]) is not None
            stream = _Ahead(file if plain else expanded(file))
            while header := stream.read(HEADER):
                start = stream.place - len(header)
                length = record_length(header)
                # Checking the length before reading avoids a copy of the whole rest of the file. A
                # record of more than `LARGEST` bytes counts as damage.
                if (
                    length is not None
                    and length <= LARGEST
                    and stream.holds(HEADER + length + FOOTER, len(header))
                ):
                    content = intact_content(stream.read(length + FOOTER))
                    if content is None:
                        log.place(f": {WRONG_SUM}, at byte {start}")
                    yield parse(content or b"")
                    continue
                stream.give_back(len(header) - 1)
                if not _skip_to_record(stream):
                    log(f" is truncated or damaged at byte {start}")
                    break
                log.place(
                    f" has no valid TFRecord at bytes {start} to {stream.place}, which are skipped"
                )
    except UserError:
        raise
    except Exception as error:  # raised by the file system, a remote store, gzip or zlib
        if of_storage(error):
            raise unreadable(path, error) from error
        log(f" cannot be read further: {shown(one_line(error))}")
    log.finish()


def _skip_to_record(stream: _Ahead) -> bool:
    """Move the stream to the next complete record with a valid header; return whether there is
    one."""
    size = FIRST_SEARCH
    while len(block := stream.read(size)) >= HEADER:
        for start in candidates(block):
            length = record_length(block[start : start + HEADER])
            back = len(block) - start
            if (
                length is not None
                and length <= LARGEST
                and stream.holds(HEADER + length + FOOTER, back)
            ):
                stream.give_back(back)
                return True
        if len(block) < size:
            return False
        stream.give_back(HEADER - 1)
        size = min(4 * size, SEARCH)
    return False


def read_tar(path: str, reported: set[str]) -> Iterator[tuple[bytes, int]]:
    """Yield the encoded image and label of each example in a tar, compressed or not.

    Args:
        path: The path or URL of the tar.
        reported: The lines, and the kinds of unused members, already logged for any shard; updated
            in place.

    Raises:
        UserError: The file cannot be read, even after retries, or its compression is not supported.
    """
    log = _Log(path, reported)
    unused: Unused = collections.Counter()
    try:
        with open_file(path) as file, open_tar(expanded(file), "r|") as tar:

            def content(member: Any) -> bytes | None:
                if not member.isreg():
                    unused[NOT_FOLLOWED] += 1
                    return None
                if member.size > LARGEST:
                    unused[TOO_LARGE] += 1
                    return None
                inside = tar.extractfile(member)
                return inside.read() if inside else b""

            members = Members(tar)
            yield from examples_of_tar(members, tar, content, unused)
            if members.problem:
                log(f" {members.problem}")
    except UserError:
        raise
    except Exception as error:  # raised by the file system, a remote store or a decompressor
        if of_storage(error):
            raise unreadable(path, error) from error
        if isinstance(error, tarfile.ReadError) and "unexpected end" in str(error):
            log(" is truncated")
        elif isinstance(error, tarfile.ReadError) and "truncated header" in str(error):
            log(" is not a tar")
        else:
            log(f" cannot be read further: {shown(one_line(error))}")
    kinds = set(map(base_kind, unused))
    if kinds - reported:
        reported.update(kinds)
        logging.warning(
            "%s has members that are not used: %s; further members of these kinds are not logged",
            shown(path), list_unused(unused),
        )  # fmt: skip
