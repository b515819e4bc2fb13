"""A table of the file and byte range of every example, for sources with random access.

A table consists of a few columns of integers. The table of a data set is built by scanning its
files, or memory-mapped from an index that `python -m can_jax.data.index` wrote. A memory-mapped
table occupies memory only for the pages in use, even with hundreds of millions of rows.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int, UInt64

from can_jax.data.formats.label_range import as_labels
from can_jax.data.storage.files import Names
from can_jax.utils.archives import map_npy
from can_jax.utils.errors import UserError, one_line
from can_jax.utils.files import read_json, replace_text

FORMAT = 1
FACTS = "index.json"
FOLDER = ".can_jax_index"  # the folder beside the data that holds an index for each split


@dataclasses.dataclass(frozen=True)
class Table:
    """The location and label of each example of a data set, one row per example.

    Attributes:
        names: The paths of the files, relative to the root folder of the data.
        file: The index into ``names`` of each example's file.
        offset, length: The byte range of each example in its file. A ``length`` of -1 means that
            the whole file is the example.
        label: The label of each example; -1 if unknown.
        label_names: The class names, indexed by label; empty if unknown.
        digest: The 8-byte BLAKE2b hash of each example's content as an integer; None if contents
            were not hashed.
        size: The size of each file in bytes; None if the sizes are unknown.
    """

    names: Names
    file: Int[np.ndarray, " examples"]
    offset: Int[np.ndarray, " examples"]
    length: Int[np.ndarray, " examples"]
    label: Int[np.ndarray, " examples"]
    label_names: tuple[str, ...] = ()
    digest: UInt64[np.ndarray, " examples"] | None = None
    size: Int[np.ndarray, " files"] | None = None

    def __len__(self) -> int:
        return len(self.file)

    def describe(self, index: int) -> str:
        """Return the name of an example's file and the byte offset in it, for messages."""
        return place_of(self.names[int(self.file[index])], int(self.offset[index]))

    def select(self, rows: np.ndarray) -> "Table":
        """Return a table of the rows that an array of indices or a mask selects; all file names
        remain in ``names``."""
        return dataclasses.replace(
            self,
            file=self.file[rows],
            offset=self.offset[rows],
            length=self.length[rows],
            label=self.label[rows],
            digest=None if self.digest is None else self.digest[rows],
        )

    def save(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write this table as an index, one .npy file for each column.

        `index.json` is written last, because its presence marks the index as complete.

        Args:
            folder: The folder of the index; created if missing.
            facts: Further entries of `index.json`, by key; the values must be JSON-serializable.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for column, values in self._columns().items():
            np.save(folder / f"{column}.npy", values)
        write_facts(folder, facts, len(self), self.label_names)

    def _columns(self) -> dict[str, np.ndarray]:
        """Return a dict of the arrays to store; the keys are the file names without the suffix
        .npy."""
        columns = {
            "names": self.names.text,
            "name_ends": self.names.ends,
            "file": self.file,
            "offset": self.offset,
            "length": self.length,
            "label": self.label,
        }
        return columns if self.digest is None else columns | {"digest": self.digest}


def place_of(name: str, offset: int) -> str:
    """Return the name of an example's file and the byte offset in it, for messages."""
    return f"{name}, at byte {offset}" if offset else name


def write_facts(
    folder: Path, facts: dict[str, Any], examples: int, label_names: tuple[str, ...]
) -> None:
    """Write `index.json`, the metadata of an index, whose presence marks the index as complete."""
    own = {"format": FORMAT, "examples": examples, "label_names": list(label_names)}
    replace_text(folder / FACTS, json.dumps(facts | own, indent=1))


def facts_of(folder: Path) -> dict[str, Any]:
    """Return the metadata of an index, which is the content of its `index.json`.

    Raises:
        UserError: The folder contains no valid index.
    """
    try:
        facts = read_json(epath.Path(folder / FACTS))
    except UserError as error:
        raise UserError(f"{folder} holds no complete index of can_jax: {error}") from error
    if facts.get("format") != FORMAT:
        raise UserError(
            f"{folder} is an index of format {facts.get('format')!r}, not {FORMAT}; rebuild it"
        )
    names, sizes = facts.get("label_names"), facts.setdefault("sizes", {})
    if (
        type(facts.get("examples")) is not int
        or not isinstance(facts.get("source", ""), str)
        or type(facts.get("undecodable", 0)) is not int
        or not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or not isinstance(sizes, dict)
        or not all(type(size) is int for size in sizes.values())
    ):
        raise UserError(f"{folder}/{FACTS} was not written by can_jax; rebuild the index")
    return facts


def load_table(folder: Path) -> tuple[Table, dict[str, Any]]:
    """Return the memory-mapped table of an index, and the content of its `index.json`.

    Raises:
        UserError: There is no index in the folder, or the index is incomplete or damaged.
    """
    facts = facts_of(folder)
    try:

        def column(name: str) -> np.ndarray:
            values = map_npy(folder / f"{name}.npy")
            if values.ndim != 1 or values.dtype.kind not in "iu":
                raise ValueError(
                    f"{name}.npy has the type {values.dtype} and the shape {values.shape}; a "
                    "one-dimensional array of integers is required"
                )
            return values

        rows = {name: column(name) for name in ("file", "offset", "length", "label")}
        if rows["label"].dtype != np.int32:  # written by another program
            rows["label"] = as_labels(rows["label"], str(folder))
        names = Names(column("names"), column("name_ends"))
        digest = column("digest") if (folder / "digest.npy").exists() else None
    except (OSError, ValueError, EOFError) as error:
        reason = one_line(error)
        raise UserError(f"{folder} holds no complete index of can_jax: {reason}") from error
    lengths = {len(values) for values in rows.values()}
    lengths |= {len(digest)} if digest is not None else set()
    if lengths != {facts["examples"]}:
        raise UserError(f"{folder} is damaged: its columns differ in length; rebuild it")
    table = Table(names, **rows, label_names=tuple(facts["label_names"]), digest=digest)
    if problem := _problem(table):
        raise UserError(f"{folder} is damaged: {problem}; rebuild it")
    return table, facts


def _problem(table: Table) -> str | None:
    """Return a phrase that describes the first fault of a table, or None if the table is valid."""
    names, ends = table.names, table.names.ends
    if names.text.dtype != np.uint8:
        return "its file names are not stored as bytes"
    if len(ends) and (ends[0] < 0 or ends[-1] > len(names.text) or (ends[1:] < ends[:-1]).any()):
        return "the offsets of its file names are invalid"
    if not len(table):
        return "it has no examples"
    if table.file.min() < 0 or table.file.max() >= len(names):
        return "an example refers to a missing file name"
    if table.label_names and table.label.max() >= len(table.label_names):
        return "a label has no name"
    return None
