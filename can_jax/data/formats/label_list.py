"""Label lists in CSV, TSV or JSON lines, which map file names to labels."""

import csv
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from absl import logging
from jaxtyping import Int

from can_jax.data.formats.label_range import as_labels
from can_jax.data.storage.files import Names
from can_jax.data.storage.reading import open_file
from can_jax.data.storage.splits import shown
from can_jax.utils.errors import UserError, one_line

# Column names in lower case, in order of preference. Kaggle's ImageNet uses the last of each list.
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
PATHS = ("path", "image_path")  # preferred where they hold a relative path with a folder
LABELS = ("label", "class", "class_name", "category", "target", "predictionstring")
KAGGLE = "predictionstring"  # the column holds a class and boxes, separated by spaces


def read_label_list(path: str) -> dict[str, str]:
    """Return a dict that maps each file name in a label list to its label as a string.

    A row with an empty label, or with the label null in JSON, is ignored.

    Args:
        path: The path or URL of the list. A `.jsonl` or `.json` file holds one JSON object per
            line. A `.tsv` file is tab-separated, and any other file is comma-separated, each with
            the column names in the first line.

    Raises:
        UserError: The list cannot be read, a row has no column for the file name or for the label,
            or a row has more fields than the first line.
    """
    try:
        with open_file(path) as file:
            lines = (line.decode("utf-8-sig", errors="surrogateescape") for line in file)
            if path.endswith((".jsonl", ".json")):
                rows = _json_rows(lines)
            else:
                rows = csv.DictReader(lines, delimiter="\t" if path.endswith(".tsv") else ",")
            return _labels_by_file(path, rows)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{shown(path)} cannot be read: {one_line(error)}") from error


def _json_rows(lines: Iterator[str]) -> Iterator[dict]:
    for line in lines:
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("a line of the file is not a JSON object")
            yield row


def _labels_by_file(path: str, rows: Iterable[dict]) -> dict[str, str]:
    """Return a dict from the file name to the label in each row of a label list.

    A row with an empty label is left out. Of several rows for a file, the last one counts, and a
    warning is logged if their labels differ.

    Raises:
        UserError: A row has no column for the file name or for the label, or a row has more fields
            than the first line.
    """
    labels: dict[str, str] = {}
    conflicts: dict[str, str] = {}
    for row in rows:
        if any(extra := row.pop(None, ())):  # the key of `csv.DictReader` for further fields
            raise UserError(
                f"{shown(path)}: the row {shown(', '.join(map(str, [*row.values(), *extra])))} has "
                "more fields than the first line; quote fields that contain a separator"
            )
        columns = {str(name).strip().lower(): value for name, value in row.items()}
        paths = (name for name in PATHS if _is_relative(str(columns.get(name))))
        files = (name for name in FILES if columns.get(name) is not None)
        file = next(itertools.chain(paths, files), None)
        given = (name for name in LABELS if columns.get(name) is not None)
        present = (name for name in LABELS if name in columns)
        label = next(itertools.chain(given, present), None)
        if file is None or label is None:
            raise UserError(
                f"{shown(path)} has the columns {', '.join(map(shown, columns))}; "
                f"it needs a column with file names, titled {FILES[0]!r} for example, and a "
                f"column with labels, titled {LABELS[0]!r} for example"
            )
        value = "" if columns[label] is None else str(columns[label]).strip()
        if label == KAGGLE:
            value = value.split(" ")[0]
        name = os.path.normpath(str(columns[file]).strip())
        if not value:
            continue
        if labels.get(name, value) != value:
            conflicts[name] = f"{labels[name]!r} and {value!r}"
        labels[name] = value
    if conflicts:
        first, both = next(iter(conflicts.items()))
        logging.warning(
            "%s gives more than one label to %d files; for example, %s has the labels %s. The last "
            "label of a file counts",
            shown(path), len(conflicts), shown(first), both,
        )  # fmt: skip
    return labels


def _is_relative(path: str) -> bool:
    """Return whether a path is relative and contains a folder; False for a URL."""
    return os.sep in path and not os.path.isabs(path) and "://" not in path


def labels_from(
    listed: dict[str, str], names: Names | Sequence[str]
) -> tuple[Int[np.ndarray, " files"], tuple[str, ...], int]:
    """Look up the labels of files in a label list.

    If any entry of the list contains a slash, entries are compared with the relative paths of the
    files. If no entry contains a slash, entries are compared with the base names of the files. An
    entry may omit the suffix of a file's name.

    Args:
        listed: The label of each file name, as returned by `read_label_list`.
        names: The paths of the files, relative to the data folder.

    Returns:
        The label of each file, the class names, and the number of entries that match no file. A
        file that is not listed has label -1. If all labels are integers, there are no class names.

    Raises:
        UserError: An entry without a slash matches files in different folders.
    """
    bare = not any(os.sep in name for name in listed)
    texts: list[str | None] = []
    used: dict[str, int] = {}
    for i in range(len(names)):
        name = os.path.basename(names[i]) if bare else names[i]
        key = name if name in listed else os.path.splitext(name)[0]
        texts.append(listed.get(key))
        first = names[used.setdefault(key, i)]
        if bare and key in listed and os.path.dirname(first) != os.path.dirname(names[i]):
            raise UserError(
                f"config.data.labels: the entry {shown(key)} matches both {shown(first)} and "
                f"{shown(names[i])}; list paths such as {shown(first)} instead of names"
            )
    missing = len(listed.keys() - used.keys())
    values = set(listed.values())
    if all(value.removeprefix("-").isdecimal() for value in values):
        # Python's integers can exceed int64; `as_labels` replaces those beyond int32.
        numbers = np.array([-1 if text is None else int(text) for text in texts], object)
        return as_labels(numbers, "config.data.labels"), (), missing
    classes = tuple(sorted(values))
    index = {name: i for i, name in enumerate(classes)}
    labels = [-1 if text is None else index[text] for text in texts]
    return np.array(labels, np.int32), classes, missing
