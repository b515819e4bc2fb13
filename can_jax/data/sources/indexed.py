"""The source of encoded images that are located by a table of byte ranges in files."""

import errno
import functools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging
from jaxtyping import Int, UInt64

from can_jax.data.formats.records import FOOTER, WRONG_SUM, ParseRecord, intact_content
from can_jax.data.sources.base import Examples, Fingerprint, Source
from can_jax.data.sources.block import Block, empty_buffer
from can_jax.data.sources.example_table import Table
from can_jax.data.storage.digest import digest_of_columns, digest_of_names
from can_jax.data.storage.disk_cache import DiskCache
from can_jax.data.storage.reading import (
    LARGEST,
    LocalFile,
    OpenFiles,
    RandomFile,
    open_random,
    unreadable,
)
from can_jax.data.storage.remote import is_remote
from can_jax.data.storage.splits import shown
from can_jax.utils.errors import UserError

NAMED = 1000  # unreadable examples logged by name
SIZED = 10_000  # to estimate the total size, 10,000 to 20,000 examples are sampled, or all if fewer
USUAL = 100_000  # the assumed bytes of an image, where no size is known
STATED = 200_000  # the maximum number of files whose sizes `byte_sizes` requests
# Concurrent reads from remote stores: at 100 ms each, enough for 5,000 images a second.
REMOTE_READERS = 512
REMOTE_CHUNKS = 16  # chunks of the input pipeline that are read ahead of the decoding


class IndexedSource(Source):
    """A source of encoded images, each stored as a file, as a byte range of a file, or in a record
    of a TFRecord file.

    Args:
        root: The path or URL of the folder to which the file names in ``table`` are relative.
        table: The table that locates the examples.
        parse: A function that returns the encoded image and the label of a record. If ``parse`` is
            None, the byte ranges are the images themselves, and ``table`` contains their labels.
        cache_bytes: The size of a cache of encoded images in memory, in bytes. Images are added as
            they are read, until the cache is full, and are never removed.
    """

    def __init__(
        self, root: str, table: Table, parse: ParseRecord | None = None, cache_bytes: int = 0
    ):
        self.root, self.table, self._parse = root, table, parse
        self._files = OpenFiles()
        self._unread: set[int] = set()
        self._cache: dict[int, bytes] = {}
        self._cache_room = cache_bytes
        self._disk: DiskCache | None = None
        self._remote = is_remote(root)
        self.chunks_ahead = REMOTE_CHUNKS if self._remote else 0
        self.labels = None if parse else table.label  # each record holds its label
        self.label_names = table.label_names

    @property
    def examples(self) -> int:
        """The number of examples in the table."""
        return len(self.table)

    def cache_on_disk(self, folder: str, limit: int) -> None:
        """Enable a cache of encoded images in a folder.

        Args:
            folder: The path of the folder, which several processes and hosts can share.
            limit: The approximate maximum size of the cache in bytes.
        """
        every = np.arange(0, self.examples, max(1, self.examples // SIZED))
        sizes = self._sizes(every)
        known = sizes[sizes >= 0] if sizes is not None else np.zeros(0)
        mean = float(known.mean()) if len(known) else USUAL
        version = f"{self._place} {self.fingerprint()}"
        self._disk = DiskCache(folder, limit, int(mean * self.examples), version)

    @property
    def stored_labels(self) -> Int[np.ndarray, " examples"]:
        """The labels in the table, which can differ from the labels in the records if the index was
        built with another `label_key` than the current one."""
        return self.table.label

    @property
    def content_digests(self) -> UInt64[np.ndarray, " examples"] | None:
        """The hash of each example's content as an integer; None if the table has no hashes."""
        return self.table.digest

    def byte_sizes(self, examples: Examples) -> Int[np.ndarray, " chosen"] | None:
        """Return the size of each encoded image in bytes; -1 if unknown, as in records, which have
        further features.

        The result is None for records in an object store, and if finding the sizes requires
        requests to an object store, or system calls for more than `STATED` files.
        """
        if self._parse is None:
            return self._sizes(examples)
        return None if self._remote else np.full(len(examples), -1)

    def _sizes(self, examples: Examples) -> Int[np.ndarray, " chosen"] | None:
        """Return the size of each stored file or record in bytes, as `byte_sizes` does."""
        table, length = self.table, np.asarray(self.table.length[examples])
        if (length >= 0).all():
            return length
        if is_remote(self.root) or len(examples) > STATED:
            return None

        def size(example: int) -> int:
            try:
                name = table.names[int(table.file[example])]
                return os.stat(os.path.join(self.root, name)).st_size
            except OSError:
                return -1

        return np.array([size(int(example)) for example in examples], np.int64)

    def fingerprint(self) -> Fingerprint:
        """Return the number of examples, and hashes of the file names, the byte ranges and, if
        known, the file sizes, content digests and labels."""
        table = self.table
        result: Fingerprint = {
            "examples": self.examples,
            "names": digest_of_names(table.names),
            "places": digest_of_columns(table.file, table.offset, table.length),
        }
        if table.size is not None:
            result["sizes"] = digest_of_columns(table.size)
        if table.digest is not None:
            result["content"] = digest_of_columns(table.digest)
        if self.labels is not None:
            result["labels"] = digest_of_columns(self.labels)
        return result

    def same_files(self, other: Source) -> bool:
        """Return whether another source has the same root folder as this source, and the same
        examples in the same order."""
        if self is other:
            return True
        return (
            isinstance(other, IndexedSource)
            and self._place == other._place
            and len(self.table) == len(other.table)
            and np.array_equal(self.table.names.text, other.table.names.text)
            and np.array_equal(self.table.file, other.table.file)
            and np.array_equal(self.table.offset, other.table.offset)
        )

    @property
    def _place(self) -> str:
        """The URL of the root folder, or its local path after resolving symbolic links."""
        return self.root if is_remote(self.root) else os.path.realpath(self.root)

    def read(self, examples: Examples) -> tuple[list[bytes], np.ndarray]:
        """Return the encoded images of some examples, and their labels; a damaged record has an
        empty image.

        Raises:
            UserError: A file cannot be read, even after retries. An unreadable file is not replaced
                by another one, because that would change the order of the data.
        """
        apply = _remote_readers().map if self._remote else map
        contents = list(apply(self._content, map(int, examples)))
        if self._parse is None:
            return contents, np.asarray(self.table.label[examples], np.int32)
        pairs = [self._parse(content) for content in contents]
        return [image for image, _ in pairs], np.array([label for _, label in pairs], np.int32)

    def read_block(self, examples: Examples) -> Block:
        """Return the encoded images of some examples in one buffer, and their labels.

        Images in local shards are read directly into the buffer. Python code runs for only a few
        microseconds per image of a local shard.

        Raises:
            UserError: A file cannot be read, even after retries; see `read`.
        """
        table = self.table
        cached = self._cache or self._cache_room or self._disk
        # `take` releases the GIL, so other threads run while it waits for pages of the index.
        length = np.asarray(table.length).take(examples)
        if self._remote or self._parse or cached or (length < 0).any():
            return super().read_block(examples)
        columns = (np.asarray(column).take(examples) for column in (table.file, table.offset))
        files, offsets = (column.tolist() for column in columns)
        wanted = length.tolist()
        # No memory is allocated for images that are too large. `_content` rejects them.
        length = np.where(length > LARGEST, 0, length).astype(np.int64, copy=False)
        end = np.cumsum(length)
        start = end - length
        data = empty_buffer(int(end[-1]))
        view = data.data
        failed = []
        parts = zip(files, offsets, wanted, start.tolist(), end.tolist(), strict=True)
        for row, (file, offset, size, first, last) in enumerate(parts):
            try:
                opened = self._files.get(file, self._path)
                assert isinstance(opened, LocalFile)
                complete = opened.read_into(view[first:last], offset) == size
            except Exception:
                complete = False
            if not complete:
                failed.append(row)
        for row in failed:  # retries, logs the problem or raises an error
            content = self._content(int(examples[row]))
            view[start[row] : start[row] + len(content)] = content
            length[row] = len(content)
        return Block(data, start, length, np.asarray(table.label).take(examples).astype(np.int32))

    def describe(self, example: int) -> str:
        """Return the path of an example's file and the byte offset in it, for messages."""
        return os.path.join(self.root, self.table.describe(example))

    def _path(self, file: int) -> str:
        """Return the path of a file in the table, given its index.

        Raises:
            ValueError: The file name refers to a file outside the root folder, for example because
                the index was tampered with.
        """
        name = self.table.names[file]
        if os.path.isabs(name) or os.pardir in name.split(os.sep) or "\0" in name:
            raise ValueError(f"{shown(name)} is not below {shown(self.root)}")
        return os.path.join(self.root, name)

    def _content(self, example: int) -> bytes:
        """Return the bytes of an example, from the caches in memory or on disk if they contain it;
        empty bytes for a damaged record."""
        cached = self._cache.get(example)
        if cached is not None:
            return cached
        disk = self._disk
        entry = disk.path(example) if disk else None
        content = disk.get(entry) if disk and entry else None
        if content is None:
            content = self._read(example)
            if content is None:
                return b""
            if disk and entry:
                disk.put(entry, content)
        if len(content) <= self._cache_room:
            self._cache_room -= len(content)
            self._cache[example] = content
        return content

    def _read(self, example: int) -> bytes | None:
        """Return the bytes of an example from its file, or None if they are damaged. A warning is
        logged for each of the first `NAMED` damaged examples.

        Raises:
            UserError: The file cannot be read, even after retries.
        """
        table = self.table
        length = int(table.length[example])
        try:
            number = int(table.file[example])
            # A file of one example is not kept open, because it is read once an epoch.
            whole = length < 0
            file = open_random(self._path(number)) if whole else self._files.get(number, self._path)
            return read_example(file, int(table.offset[example]), length, self._parse)
        except UserError:
            raise
        except ValueError as error:  # the content is damaged
            if example not in self._unread and len(self._unread) < NAMED:
                self._unread.add(example)
                where = shown(self.describe(example))
                logging.warning("cannot be read: %s: %s", where, shown(str(error)))
            return None
        except Exception as error:  # remote file systems raise their own types
            raise unreadable(self.describe(example), error) from error


@functools.cache
def _remote_readers() -> ThreadPoolExecutor:
    """Return the thread pool for requests to object stores; all sources share this pool."""
    return ThreadPoolExecutor(REMOTE_READERS, "remote-reader")


def read_example(file: RandomFile, offset: int, length: int, parse: ParseRecord | None) -> bytes:
    """Return the bytes of an example; if the example is a record, verify its checksum.

    Args:
        file: The open file that contains the example.
        offset: The byte offset of the example in the file.
        length: The length of the example in bytes; -1 for the whole file.
        parse: The function that parses the record; None if the example is not a record.

    Raises:
        ValueError: The checksum of the record is wrong, or the example has more than `LARGEST`
            bytes.
        OSError: The file cannot be read, or is too short to contain the example.
        Exception: A storage library raises an error of its own type.
    """
    expected = length if parse is None else length + FOOTER
    content = file.read(offset, expected)
    if len(content) < expected:
        raise OSError(errno.EIO, "the file is shorter than when it was indexed or scanned")
    if parse is None:
        return content
    intact = intact_content(content)
    if intact is None:
        raise ValueError(WRONG_SUM)
    return intact
