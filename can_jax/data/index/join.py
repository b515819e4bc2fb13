"""The assembly of an index, with little memory, from the results of all units.

At 10^8 rows the columns take 3.2 GB on disk. Memory holds one byte for each row, the indices of the
duplicates, and a few million rows at a time.
"""

import collections
import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt64

from can_jax.data.formats.webdataset import Unused, from_text
from can_jax.data.index.examine import Part
from can_jax.data.sources.example_table import place_of
from can_jax.utils.archives import create_npy

COLUMNS = {
    "file": np.int32, "offset": np.int64, "length": np.int64, "label": np.int32,
    "digest": np.uint64,
}  # fmt: skip
SORTED_AT_ONCE = 2**22  # rows that are sorted in memory
COPIED_AT_ONCE = 2**20  # rows that are copied at once
Rows = Int[np.ndarray, " copies"]


class Joined(NamedTuple):
    """The joined columns of all decodable examples, and counts of undecodable examples and unused
    tar members.

    Attributes:
        columns: The memory-mapped array of each column, by name.
        undecodable: The number of examples that cannot be decoded.
        problems: One sentence for each damaged shard.
        unused: The number of tar members that are not used, by kind.
    """

    columns: dict[str, np.ndarray]
    undecodable: int
    problems: list[str]
    unused: Unused


def join_parts(
    parts: Iterable[Part], names: Sequence[str], unit: int, folder: Path, undecodable: Path
) -> Joined:
    """Write the rows of decodable examples to raw files, one for each column, and list undecodable
    examples in a text file.

    Args:
        parts: The result of each unit of work, in the order of the files.
        names: The paths of all files, relative to the data folder.
        unit: The number of files in each part; the last part may have fewer.
        folder: The folder to which the raw files of the columns are written.
        undecodable: The path of the text file that lists each undecodable example and its reason.
    """
    problems: list[str] = []
    unused: Unused = collections.Counter()
    bad = 0
    with contextlib.ExitStack() as stack:
        raw = {name: stack.enter_context((folder / f"{name}.raw").open("wb")) for name in COLUMNS}
        # Names that are not UTF-8 are preserved.
        listed = stack.enter_context(undecodable.open("w", errors="surrogateescape"))
        for index, part in enumerate(parts):
            good = part.reason == ""
            columns = part._asdict() | {"file": part.which.astype(np.int64) + unit * index}
            for name, kind in COLUMNS.items():
                raw[name].write(columns[name][good].astype(kind).tobytes())
            for row in np.flatnonzero(~good):
                place = place_of(names[int(columns["file"][row])], int(part.offset[row]))
                listed.write(f"{place}: {part.reason[row]}\n")
            bad += int((~good).sum())
            problems += map(str, part.problems)
            unused += from_text(part.unused)
    columns = {name: map_raw(folder / f"{name}.raw", kind) for name, kind in COLUMNS.items()}
    return Joined(columns, bad, problems, unused)


def map_raw(path: Path, kind: type) -> np.ndarray:
    """Return a memory-mapped array of the values in a raw file, which may be empty."""
    return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)


def copies_of(digest: UInt64[np.ndarray, " rows"], folder: Path) -> tuple[Rows, Rows]:
    """Return the index of each row that duplicates an earlier row, and the index of the first row
    with this content.

    Both returned arrays are sorted by the index of the duplicate. Rows are distributed by digest to
    temporary files that are small enough to sort in memory.

    Args:
        digest: The digest of each row's content; may be memory-mapped.
        folder: The folder for the temporary files.
    """
    bits = max(0, (max(1, len(digest)) - 1) // SORTED_AT_ONCE).bit_length()
    pair = np.dtype([("digest", np.uint64), ("row", np.int64)])
    paths = [folder / f"sort-{number}.raw" for number in range(2**bits)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for start in range(0, len(digest), COPIED_AT_ONCE):
            block = np.empty(len(digest[start : start + COPIED_AT_ONCE]), pair)
            block["digest"] = digest[start : start + COPIED_AT_ONCE]
            block["row"] = np.arange(start, start + len(block))
            group = block["digest"] >> np.uint64(64 - bits) if bits else np.zeros(len(block), int)
            for number, file in enumerate(files):
                file.write(block[group == number].tobytes())
    rows, firsts = [], []
    for path in paths:
        pairs = np.fromfile(path, pair)
        path.unlink()
        pairs = pairs[np.argsort(pairs["digest"], kind="stable")]
        begins = np.ones(len(pairs), bool)
        begins[1:] = pairs["digest"][1:] != pairs["digest"][:-1]
        first = pairs["row"][begins][np.cumsum(begins) - 1] if len(pairs) else pairs["row"]
        rows.append(pairs["row"][~begins])
        firsts.append(first[~begins])
    row, first = np.concatenate(rows), np.concatenate(firsts)
    order = np.argsort(row)
    return row[order], first[order]


def write_columns(
    columns: dict[str, np.ndarray], out: Path, dropped: Rows, file_labels: np.ndarray | None
) -> int:
    """Write the columns of an index without the dropped rows, and return the number of rows
    written.

    Args:
        columns: The array of each column, by name, with all rows.
        out: The folder of the index, to which one .npy file per column is written.
        dropped: The indices of the rows to leave out.
        file_labels: The label of each file, which replaces the labels of the file's rows; None to
            keep the labels in ``columns``.
    """
    keep = np.ones(len(columns["file"]), bool)
    keep[dropped] = False
    count = int(keep.sum())
    for name, values in columns.items():
        kind = COLUMNS[name]
        target = create_npy(out / f"{name}.npy", kind, count)
        end = 0
        for start in range(0, len(values), COPIED_AT_ONCE):
            rows = slice(start, start + COPIED_AT_ONCE)
            kept = values[rows][keep[rows]]
            if name == "label" and file_labels is not None:
                kept = file_labels[columns["file"][rows][keep[rows]]]
            target[end : end + len(kept)] = kept
            end += len(kept)
        del target  # flushes the file
    return count
