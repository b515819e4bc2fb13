"""Encoded images that are read where they lie, by a table of places."""

import dataclasses
import errno
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int

from can_jax.data.formats.records import FOOTER, WRONG_SUM, intact_content
from can_jax.data.sources.base import Examples
from can_jax.data.sources.example_table import FACTS, FOLDER, Table, facts_of, load_table
from can_jax.data.storage.files import shard_sizes
from can_jax.data.storage.reading import OpenFiles, RandomFile, is_remote, unreadable
from can_jax.data.storage.splits import shown, spellings
from can_jax.data.storage.walk import is_folder_entry
from can_jax.utils.errors import UserError

ParseRecord = Callable[[bytes], tuple[bytes, int]]  # a record's encoded image and label
NAMED_FOLDERS = 3  # that a message about an index names
NAMED = 1000  # files that are named when they cannot be read
REMOTE_READERS = 16  # files of a remote store that are read at once, for each chunk of a batch


class IndexedSource:
    """Examples by their place in files.

    Args:
        root: what the names in the table are relative to.
        table: where the examples lie.
        parse: what makes an encoded image and a label of a record; without it the bytes are the
            image, and the label is the table's.
        cache_bytes: how many bytes of content are kept in memory, those that are read first.
    """

    def __init__(
        self, root: str, table: Table, parse: ParseRecord | None = None, cache_bytes: int = 0
    ):
        self.root, self.table, self._parse = root, table, parse
        self._files = OpenFiles()
        self._unread: set[int] = set()
        self._cache: dict[int, bytes] = {}
        self._cache_room = cache_bytes
        self._readers = ThreadPoolExecutor(REMOTE_READERS) if is_remote(root) else None

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self.table)

    @property
    def labels(self) -> Int[np.ndarray, " examples"] | None:
        """-1 where unknown; None where each record holds its own."""
        return None if self._parse else self.table.label

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, if known."""
        return self.table.label_names

    def read(self, examples: Examples) -> tuple[list[bytes], np.ndarray]:
        """Return encoded images and labels; an image whose record is damaged is empty.

        Raises:
            UserError: A file cannot be read, after several tries. An image in its place would make
                another stream of examples.
        """
        apply = self._readers.map if self._readers else map
        contents = list(apply(self._content, map(int, examples)))
        if self._parse is None:
            return contents, np.asarray(self.table.label[examples], np.int32)
        pairs = [self._parse(content) for content in contents]
        return [image for image, _ in pairs], np.array([label for _, label in pairs], np.int32)

    def describe(self, example: int) -> str:
        """Where an example lies."""
        return os.path.join(self.root, self.table.describe(example))

    def _path(self, file: int) -> str:
        """Return the path of a file.

        Raises:
            ValueError: Its name leads out of the root, as only a foreign index has it.
        """
        name = self.table.names[file]
        if os.path.isabs(name) or os.pardir in name.split(os.sep) or "\0" in name:
            raise ValueError(f"{shown(name)} is not below {shown(self.root)}")
        return os.path.join(self.root, name)

    def _content(self, example: int) -> bytes:
        """The bytes of an example, from memory if they were kept."""
        kept = self._cache.get(example)
        if kept is not None:
            return kept
        table = self.table
        length = int(table.length[example])
        try:
            path = self._path(int(table.file[example]))
            # Files of their own are not kept open: each is read once an epoch.
            file = RandomFile(path) if length < 0 else self._files[path]
            content = read_example(file, int(table.offset[example]), length, self._parse)
        except UserError:
            raise
        except ValueError as error:  # its content is damaged
            if example not in self._unread and len(self._unread) < NAMED:
                self._unread.add(example)
                where = shown(self.describe(example))
                logging.warning("cannot be read: %s: %s", where, shown(str(error)))
            return b""
        except Exception as error:  # a remote store has kinds of its own
            raise unreadable(self.describe(example), error) from error
        if len(content) <= self._cache_room:
            self._cache_room -= len(content)
            self._cache[example] = content
        return content


def read_example(file: RandomFile, offset: int, length: int, parse: ParseRecord | None) -> bytes:
    """Return the bytes of an example; those of a record are held against their checksum.

    Raises:
        ValueError: The checksum is wrong.
        OSError: The file is shorter than the table says.
        Exception: Whatever else the file system raises.
    """
    wanted = length if parse is None else length + FOOTER
    content = file.read(offset, wanted)
    if len(content) < wanted:
        raise OSError(errno.EIO, "it ends before this example, and has been cut since")
    if parse is None:
        return content
    intact = intact_content(content)
    if intact is None:
        raise ValueError(WRONG_SUM)
    return intact


def table_of(
    source: str,
    root: str,
    split: str,
    index: str | None,
    scan: Callable[[], Table],
    shards: Sequence[str] | None = None,
) -> Table:
    """The table of a data set: its index if it has one, otherwise what a scan finds.

    Args:
        source: the kind of the data, as the index has it.
        root: the folder of the data.
        split: such as `train`.
        index: the folder of the index, or None for its usual place below the root.
        scan: looks at the files, for want of an index.
        shards: names relative to the root, which an index must agree with; None where a file is an
            example, and those added since are left out.

    Raises:
        UserError: an index that is damaged, or older than its data.
    """
    place = Path(index) if index else _usual_place(root, split, shards)
    if place is None:
        return scan()
    table, facts = load_table(place)
    if facts.get("source", source) != source:
        raise UserError(f"{place} is an index of {facts['source']} data, not of {source} data")
    _log_left_out(place, facts, root if shards is None else None)
    if shards is None:
        return table
    found = shard_sizes([os.path.join(root, name) for name in shards])
    sizes = dict(zip(shards, found.tolist(), strict=True))
    for name in sorted(sizes.keys() ^ facts["sizes"].keys()):
        raise UserError(f"{place} is not the index of this data: {name} is in one of them only")
    for name, size in sizes.items():
        if size != facts["sizes"][name]:
            raise UserError(
                f"{place} is older than {os.path.join(root, name)}; build it again with "
                f"python -m can_jax.data.index"
            )
    in_order = [sizes[table.names[i]] for i in range(len(table.names))]
    return dataclasses.replace(table, size=np.array(in_order, np.int64))


def _usual_place(root: str, split: str, shards: Sequence[str] | None) -> Path | None:
    """Return the folder of a split's index beside its data, built under any name of the split.

    Args:
        root, split, shards: As in `table_of`. An index of other shards does not count, unless it
            has the very name of the split.
    """
    for spelling in spellings(split):
        place = Path(root) / FOLDER / spelling
        if not (place / FACTS).exists():
            continue
        if spelling == split or shards is None or set(shards) == set(facts_of(place)["sizes"]):
            return place
    return None


def _log_left_out(place: Path, facts: dict[str, Any], folder: str | None) -> None:
    """Log what an index leaves out of its data.

    Args:
        place: the folder of the index.
        facts: that it was written with.
        folder: the folder of classes that it is of, None for shards.
    """
    again = "python -m can_jax.data.index builds it again"
    if "request" not in facts and facts.get("source") != "tfrecord":
        logging.warning(
            "%s was written by an older version, which missed images in tars and told fewer splits "
            "apart; %s, which changes the order of examples", place, again,
        )  # fmt: skip
    if facts.get("undecodable"):
        logging.warning(
            "%s leaves out %d images that could not be decoded as it was built; undecodable.txt in "
            "it says why", place, facts["undecodable"],
        )  # fmt: skip
    if folder is not None and facts["label_names"] and not is_remote(folder):
        known = set(facts["label_names"])
        found = {entry.name for entry in os.scandir(folder) if is_folder_entry(entry)}
        if new := sorted(name for name in found - known if not name.startswith(".")):
            names = [shown(name) for name in new[:NAMED_FOLDERS]]
            logging.warning(
                "%s does not have %d folders beside its classes, such as %s; %s",
                place, len(new), ", ".join(names), again,
            )  # fmt: skip
