"""The search for the index of a data set, and the comparison of the index with the data."""

import bisect
import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from can_jax.data.sources.example_table import FACTS, FOLDER, Table, facts_of, load_table
from can_jax.data.storage.files import (
    STAT_THREADS,
    Names,
    folders_of,
    holds_image,
    is_image,
    shard_sizes,
)
from can_jax.data.storage.mirror import mirrored
from can_jax.data.storage.remote import is_remote
from can_jax.data.storage.splits import some, spellings, split_of_file
from can_jax.utils.errors import UserError

CHECKED = 10_000  # names and folder entries examined in the search for images that were added
REBUILD = "rebuild the index with python -m can_jax.data.index"


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
            after indexing are left out with a warning; see `_log_added`.

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
    _log_left_out(folder, facts)
    if shards is None:
        if not is_remote(root):
            _log_added(folder, root, table.names)
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
            raise UserError(
                f"the index {folder} does not match {changed}, whose size has changed; {REBUILD}"
            )
    in_order = [sizes[table.names[i]] for i in range(len(table.names))]
    return dataclasses.replace(table, size=np.array(in_order, np.int64))


def _usual_place(root: str, split: str, shards: Sequence[str] | None) -> Path | None:
    """Return the existing default folder of a split's index, under any spelling of the split, or
    None.

    Args:
        root: The path or URL of the folder that contains the data.
        split: The name of the split, such as `train`.
        shards: The names of the shards, or None if the data has no shards. If ``shards`` is given,
            an index under another spelling than ``split`` must cover exactly these shards.
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


def _log_left_out(index: Path, facts: dict[str, Any]) -> None:
    """Log warnings about the data that an index leaves out.

    Args:
        index: The folder of the index, for messages.
        facts: The content of the index's `index.json`.
    """
    if "request" not in facts and facts.get("source") != "tfrecord":
        logging.warning(
            "the index %s was written by an older version of can_jax, which missed images in tars "
            "and distinguished fewer splits; %s. Rebuilding changes the order of examples",
            index, REBUILD,
        )  # fmt: skip
    if facts.get("undecodable"):
        logging.warning(
            "the index %s leaves out %d images that could not be decoded when it was built; the "
            "file undecodable.txt in the index lists the reasons", index, facts["undecodable"],
        )  # fmt: skip


def _log_added(index: Path, root: str, names: Names) -> None:
    """Log a warning if images were added to a local folder after its index was built.

    Only folders that were modified after the index was built are searched. At most
    `CHECKED` names in the index, at most `CHECKED` entries of modified folders, and at most
    `CHECKED` files below each of these entries are examined.

    Args:
        index: The folder of the index. The index counts as built when its `index.json` was written.
        root: The indexed folder.
        names: The paths of the indexed images, relative to ``root``; if they are not sorted,
            nothing is checked.
    """
    rows = np.linspace(0, len(names) - 1, min(len(names), CHECKED), dtype=int)
    sample = [names[int(row)] for row in rows]
    folders = {os.path.dirname(name) for name in sample}
    # The names in an index of an older version can be relative to a folder above ``root``.
    if sample != sorted(sample) or not os.path.isdir(os.path.join(root, min(folders))):
        return
    for inner in list(folders):
        while inner:
            inner = os.path.dirname(inner)
            folders.add(inner)
    built = (index / FACTS).stat().st_mtime_ns
    with ThreadPoolExecutor(STAT_THREADS) as threads:
        times = threads.map(lambda folder: _modified(os.path.join(root, folder)), folders)
        changed = sorted(itertools.compress(folders, (time >= built for time in times)))
    entries = (path for folder in changed for path in _images_and_folders(root, folder))
    new = []
    for path in filter(None, itertools.islice(entries, CHECKED)):
        row = bisect.bisect_left(names, path)
        if row == len(names) or not names[row].startswith(path):
            new.append(path)
    if new:
        logging.warning(
            "the index %s lacks %d images or folders of images, which were added after it was "
            "built: %s; %s", index, len(new), some(new), REBUILD,
        )  # fmt: skip


def _modified(folder: str) -> int:
    """Return the modification time of a folder in nanoseconds; -1 if it does not exist."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return -1


def _images_and_folders(root: str, folder: str) -> Iterator[str]:
    """Yield a string for each visible entry of a folder: the path of an image or of a subfolder
    that contains images, and "" for another entry.

    The path of a subfolder ends with a slash. "" also stands for all links, and for folders named
    like splits, because even a complete index can lack them.

    Args:
        root: The folder to which the yielded paths are relative.
        folder: The path of the folder, relative to ``root``.
    """
    place = os.path.join(root, folder)
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                yield ""
            elif not entry.is_dir():
                yield path if is_image(place, entry.name) else ""
            else:
                new = not split_of_file(entry.name) and holds_image(entry.path, CHECKED)
                yield f"{path}/" if new else ""
