"""Lists of file names and labels, as CSV, TSV or JSON lines."""

import csv
import json
import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from can_jax.data.formats.label_range import as_labels
from can_jax.data.storage.files import Names
from can_jax.data.storage.reading import open_file
from can_jax.data.storage.splits import shown
from can_jax.utils.errors import UserError, one_line

# Names of columns in lower case, the preferred first. Kaggle's ImageNet has the last of each.
FILES = (
    "file_name",
    "filename",
    "file",
    "path",
    "image_path",
    "image",
    "image_id",
    "id",
    "imageid",
)
LABELS = ("label", "class", "class_name", "category", "target", "predictionstring")
KAGGLE = "predictionstring"  # a class and boxes, separated by blanks


def read_label_list(path: str) -> dict[str, str]:
    """Return the label of each file name in a list, as text.

    Args:
        path: The path of the list: JSON lines if it ends in .jsonl or .json, tab-separated if it
            ends in .tsv, and otherwise comma-separated, with the names of the columns first.

    Raises:
        UserError: The list cannot be read, or has no column of file names or of labels.
    """
    try:
        with open_file(path) as file:
            lines = (line.decode("utf-8-sig", errors="surrogateescape") for line in file)
            rows = _json_rows(lines) if path.endswith((".jsonl", ".json")) else _rows(path, lines)
            return dict(_pairs(path, rows))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{shown(path)} cannot be read: {one_line(error)}") from error


def _rows(path: str, lines: Iterator[str]) -> Iterator[dict]:
    yield from csv.DictReader(lines, delimiter="\t" if path.endswith(".tsv") else ",")


def _json_rows(lines: Iterator[str]) -> Iterator[dict]:
    for line in lines:
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("a line is not a JSON object")
            yield row


def _pairs(path: str, rows: Iterator[dict]) -> Iterator[tuple[str, str]]:
    """Yield the file name and the label of each row."""
    for row in rows:
        columns = {str(name).strip().lower(): value for name, value in row.items()}
        file = next((name for name in FILES if columns.get(name) is not None), None)
        label = next((name for name in LABELS if columns.get(name) is not None), None)
        if file is None or label is None:
            raise UserError(
                f"{shown(path)} has the columns {', '.join(map(shown, columns))}; it needs one of "
                f"file names, such as {FILES[0]!r}, and one of labels, such as {LABELS[0]!r}"
            )
        value = str(columns[label]).strip()
        if label == KAGGLE:
            value = value.split(" ")[0]
        yield os.path.normpath(str(columns[file]).strip()), value


def labels_from(
    listed: dict[str, str], names: Names | Sequence[str]
) -> tuple[Int[np.ndarray, " files"], tuple[str, ...], int]:
    """Return the labels of files by a list.

    The entries of a list are paths or bare file names. Paths are compared with whole names, and
    bare names with the last component of each name. Entries may lack suffixes.

    Args:
        listed: The result of `read_label_list`.
        names: The names of the files.

    Returns:
        The label of each file, -1 if it is not listed; the names of the classes, empty if all
        labels are integers; and the number of entries without a file.
    """
    bare = not any(os.sep in name for name in listed)
    texts: list[str | None] = []
    used = set()
    for i in range(len(names)):
        name = os.path.basename(names[i]) if bare else names[i]
        key = name if name in listed else os.path.splitext(name)[0]
        texts.append(listed.get(key))
        used.add(key)
    missing = len(listed.keys() - used)
    values = set(listed.values())
    if all(value.removeprefix("-").isdecimal() for value in values):
        numbers = np.array([-1 if text is None else int(text) for text in texts], object)
        return as_labels(numbers.astype(np.int64), "the list of labels"), (), missing
    classes = tuple(sorted(values))
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index.get(text or "", -1) for text in texts], np.int32), classes, missing
