"""The search for the index of a data set, and the comparison of the index with the data."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from can_jax.data.sources.example_table import FACTS, FOLDER, Table, facts_of, load_table
from can_jax.data.storage.files import folders_of, shard_sizes
from can_jax.data.storage.mirror import mirrored
from can_jax.data.storage.remote import is_remote
from can_jax.data.storage.splits import shown, spellings
from can_jax.data.storage.walk import is_folder_entry
from can_jax.utils.errors import UserError

NAMED_FOLDERS = 3  # folders that a message about an index names
REBUILD = "rebuild it with python -m can_jax.data.index"


def stored_table(
    source: str, root: str, split: str, index: str | None, shards: Sequence[str] | None = None
) -> Table | None:
    """Return the table in the index of a data set, or None if it has no index.

    Args:
        source: The kind of data that the index must describe, such as `tfrecord`.
        root: The path or URL of the folder that contains the data.
        split: The name of the split, such as `train`.
        index: The folder of the index; None for the default folder below ``root``.
        shards: The names of the shards relative to ``root``, which must be exactly the shards in
            the index. If ``shards`` is None, each file is one example, and files that were added
            after indexing are left out.

    Raises:
        UserError: The folder ``index`` contains no index, or the index is damaged, belongs to
            another kind of data, or does not match the shards.
    """
    folder = local_copy(index) if index else _usual_place(root, split, shards)
    if folder is None:
        return None
    table, facts = load_table(folder)
    if facts.get("source", source) != source:
        raise UserError(f"{folder} is an index of {facts['source']} data, not of {source} data")
    _log_left_out(folder, facts, root if shards is None else None)
    if shards is None:
        return table
    current = shard_sizes([os.path.join(root, name) for name in shards])
    sizes = dict(zip(shards, current.tolist(), strict=True))
    if unmatched := sorted(sizes.keys() ^ facts["sizes"].keys()):
        raise UserError(
            f"the index {folder} does not match the data: only one of them contains "
            f"{unmatched[0]}; {REBUILD}"
        )
    for name, size in sizes.items():
        if size != facts["sizes"][name]:
            changed = os.path.join(root, name)
            raise UserError(f"{folder} does not match {changed}, whose size has changed; {REBUILD}")
    in_order = [sizes[table.names[i]] for i in range(len(table.names))]
    return dataclasses.replace(table, size=np.array(in_order, np.int64))


def _usual_place(root: str, split: str, shards: Sequence[str] | None) -> Path | None:
    """Return the existing default folder of a split's index, under any spelling of the split, or
    None.

    Args:
        root: The path or URL of the folder that contains the data.
        split: The name of the split, such as `train`.
        shards: The names of the shards, or None if the data has no shards. If ``shards`` is given,
            an index is used only if it covers exactly these shards, or its folder has exactly the
            name of the split.
    """
    place = os.path.join(root, FOLDER)
    if is_remote(root):
        there = folders_of(place)
    else:
        there = {name for name in spellings(split) if Path(place, name, FACTS).exists()}
    for spelling in spellings(split):
        if spelling not in there:
            continue
        folder = local_copy(os.path.join(place, spelling))
        if spelling == split or shards is None or set(shards) == set(facts_of(folder)["sizes"]):
            return folder
    return None


def local_copy(index: str) -> Path:
    """Return the local folder of an index; a remote index is copied to the local cache first."""
    return mirrored(index) if is_remote(index) else Path(index)


def _log_left_out(index: Path, facts: dict[str, Any], folder: str | None) -> None:
    """Log warnings about the data that an index leaves out.

    Args:
        index: The folder of the index, for messages.
        facts: The content of the index's `index.json`.
        folder: The indexed folder that contains the folders of the classes; None for shards.
    """
    if "request" not in facts and facts.get("source") != "tfrecord":
        logging.warning(
            "the index %s was written by an older version of can_jax, which missed images in tars "
            "and distinguished fewer splits; %s, which changes the order of examples",
            index, REBUILD,
        )  # fmt: skip
    if facts.get("undecodable"):
        logging.warning(
            "the index %s leaves out %d images that could not be decoded when it was built; the "
            "file undecodable.txt in the index lists the reasons", index, facts["undecodable"],
        )  # fmt: skip
    if folder is not None and facts["label_names"] and not is_remote(folder):
        classes = set(facts["label_names"])
        folders = {entry.name for entry in os.scandir(folder) if is_folder_entry(entry)}
        if new := sorted(name for name in folders - classes if not name.startswith(".")):
            names = [shown(name) for name in new[:NAMED_FOLDERS]]
            logging.warning(
                "the index %s lacks %d folders, such as %s, which are now beside the class "
                "folders; %s",
                index, len(new), ", ".join(names), REBUILD,
            )  # fmt: skip
