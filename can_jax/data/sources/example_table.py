"""Where every example of a data set lies: the table behind all encoded sources.

A table is a few columns of numbers, made by looking at the files (`scan.py`), or memory-mapped from
an index that `python -m can_jax.data.index` wrote. Mapped, hundreds of millions of rows take
address space, not memory.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int, UInt64

from can_jax.data.formats.label_range import as_labels
from can_jax.data.storage.files import Names
from can_jax.utils.archives import map_npy
from can_jax.utils.errors import UserError, one_line
from can_jax.utils.files import read_json

FORMAT = 1
FACTS = "index.json"
FOLDER = ".can_jax_index"  # beside the data, with an index a split


@dataclasses.dataclass(frozen=True)
class Table:
    """The examples of a data set, in the order of files and places in them.

    Attributes:
        names: of the files, relative to the root of the data.
        file: index into ``names`` of each example.
        offset, length: its bytes in the file; a length of -1 is the whole file.
        label: -1 where unknown.
        label_names: of the classes, if known.
        digest: the first 8 bytes of BLAKE2b of each content; None if it was not read.
        size: bytes of each file of ``names``; None if they were not looked at.
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
        """File and place of an example, for messages."""
        name, offset = self.names[int(self.file[index])], int(self.offset[index])
        return f"{name}, at byte {offset}" if offset else name

    def save(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write an index. The file of facts comes last: without it there is no index."""
        folder.mkdir(parents=True, exist_ok=True)
        for column, values in self._columns().items():
            np.save(folder / f"{column}.npy", values)
        known = {"format": FORMAT, "examples": len(self), "label_names": list(self.label_names)}
        unfinished = folder / f"{FACTS}.new"
        unfinished.write_text(json.dumps(facts | known, indent=1))
        os.replace(unfinished, folder / FACTS)

    def _columns(self) -> dict[str, np.ndarray]:
        columns = {
            "names": self.names.text,
            "name_ends": self.names.ends,
            "file": self.file,
            "offset": self.offset,
            "length": self.length,
            "label": self.label,
        }
        return columns if self.digest is None else columns | {"digest": self.digest}


def facts_of(folder: Path) -> dict[str, Any]:
    """Return the facts that an index was written with.

    Raises:
        UserError: It is no index.
    """
    try:
        facts = read_json(epath.Path(folder / FACTS))
    except UserError as error:
        raise UserError(f"{folder} holds no whole index of can_jax: {error}") from error
    if facts.get("format") != FORMAT:
        raise UserError(f"{folder} is an index of format {facts.get('format')!r}, not {FORMAT}")
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
        raise UserError(f"{folder}/{FACTS} is not what can_jax writes; build the index again")
    return facts


def load_table(folder: Path) -> tuple[Table, dict[str, Any]]:
    """An index, memory-mapped, and the facts it was written with.

    Raises:
        UserError: there is none, or it is not whole.
    """
    facts = facts_of(folder)
    try:

        def column(name: str) -> np.ndarray:
            values = map_npy(folder / f"{name}.npy")
            if values.ndim != 1 or values.dtype.kind not in "iu":
                raise ValueError(f"{name}.npy is {values.dtype} of shape {values.shape}")
            return values

        rows = {name: column(name) for name in ("file", "offset", "length", "label")}
        if rows["label"].dtype != np.int32:  # written by another program
            rows["label"] = as_labels(rows["label"], str(folder))
        names = Names(column("names"), column("name_ends"))
        digest = column("digest") if (folder / "digest.npy").exists() else None
    except (OSError, ValueError, EOFError) as error:
        reason = one_line(error)
        raise UserError(f"{folder} holds no whole index of can_jax: {reason}") from error
    lengths = {len(values) for values in rows.values()}
    lengths |= {len(digest)} if digest is not None else set()
    if lengths != {facts["examples"]}:
        raise UserError(f"{folder} is damaged: its columns differ in length; build it again")
    table = Table(names, **rows, label_names=tuple(facts["label_names"]), digest=digest)
    if problem := _problem(table):
        raise UserError(f"{folder} is damaged: {problem}; build it again")
    return table, facts


def _problem(table: Table) -> str | None:
    """Return what in the numbers of a table cannot be; None where all can."""
    names, ends = table.names, table.names.ends
    if names.text.dtype != np.uint8:
        return "its names are not bytes"
    if len(ends) and (ends[0] < 0 or ends[-1] > len(names.text) or (ends[1:] < ends[:-1]).any()):
        return "its names have no ends"
    if not len(table):
        return "it has no examples"
    if table.file.min() < 0 or table.file.max() >= len(names):
        return "an example is in none of its files"
    if table.label_names and table.label.max() >= len(table.label_names):
        return "a label has no name"
    return None
