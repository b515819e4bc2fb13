"""The index builder. The index contains a table of all usable examples, and text files that list
undecodable examples, duplicates and damaged shards."""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from can_jax.data.formats.webdataset import list_unused
from can_jax.data.index.examine import Plan, examine_all
from can_jax.data.index.folder_lock import only_writer
from can_jax.data.index.join import copies_of, join_parts, write_columns
from can_jax.data.sources.example_table import FACTS, place_of, write_facts
from can_jax.data.sources.shards import first_of
from can_jax.data.storage.files import Names, shard_sizes
from can_jax.data.storage.splits import shown
from can_jax.utils.errors import UserError, reason_of
from can_jax.utils.workers import THIS_PROCESS, Workers

PROGRESS_SECONDS = 10

# Lists that are written beside an index.
UNDECODABLE, CUT_OFF = "undecodable.txt", "cut_off.txt"
# Errors that mean that the output folder cannot be written.
UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOSPC, errno.EDQUOT,
)  # fmt: skip


def build_index(
    plan: Plan,
    names: list[str],
    out: Path,
    workers: Workers = THIS_PROCESS,
    *,
    file_labels: np.ndarray | None = None,
    label_names: tuple[str, ...] = (),
    drop_duplicates: bool = False,
) -> None:
    """Examine all files of a data set, write their index, and print a summary.

    While another process writes the same index, this call blocks. An index that another process has
    just written is reused if it was built from the files and with the options of this call.

    Args:
        plan: The kind and location of the data, and how thoroughly to check each image.
        names: The paths of the files to index, relative to ``plan.root``.
        out: The folder to which the index is written; created if missing.
        workers: The processes that examine files; by default only this process.
        file_labels: The label of each file, integers (files,), if labels follow from the paths of
            the files; else None.
        label_names: The class names in the order of the labels; empty if unknown.
        drop_duplicates: Whether to index only the first of several examples with the same content.

    Raises:
        UserError: ``names`` is empty, no example is usable, ``out`` cannot be written, or
            `examine_all` raises an error.
    """
    if not names:
        raise UserError(f"there is no image below {plan.root}")
    request = (plan, names, file_labels is not None, label_names, drop_duplicates)
    digest = hashlib.blake2b(repr(request).encode(), digest_size=16).hexdigest()
    waited = []

    def wait() -> None:
        waited.append(True)
        print(f"another process is writing {shown(str(out))}; waiting for it", flush=True)

    try:
        out.mkdir(parents=True, exist_ok=True)
        with only_writer(out, wait):
            if waited and _request_of(out) == digest:
                print(f"{shown(str(out))} was written by the other process", flush=True)
                return
            (out / "parts").mkdir(exist_ok=True)
            _build(plan, names, out, workers, file_labels, label_names, drop_duplicates, digest)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise UserError(
            f"{shown(str(out))} cannot be written: {reason_of(error)}; give another folder with "
            "--out"
        ) from error


def _request_of(out: Path) -> str | None:
    """Return the digest of the files and options from which an index was built, or None if the
    folder stores no digest."""
    try:
        return json.loads((out / FACTS).read_text()).get("request")
    except (OSError, ValueError):
        return None


def _build(
    plan: Plan,
    names: list[str],
    out: Path,
    workers: Workers,
    file_labels: np.ndarray | None,
    label_names: tuple[str, ...],
    drop_duplicates: bool,
    request: str,
) -> None:
    """Write an index to a folder that this process has locked."""
    started = time.monotonic()
    kind = "files" if plan.source == "folder" else "shards"
    print(f"{len(names)} {kind} in {shown(plan.root)}, index in {shown(str(out))}", flush=True)
    work = out / "parts"
    parts = examine_all(plan, names, work, workers, Progress())
    joined = join_parts(parts, names, plan.unit, work, out / UNDECODABLE)
    columns = joined.columns
    if problems := joined.problems:
        print(f"warning: {shown(first_of(problems))}; see {shown(str(out))}/{CUT_OFF}")
    if joined.unused:
        print(f"tar members that are not used: {list_unused(joined.unused)}")
    _write_lines(out / CUT_OFF, problems)
    copies, firsts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if plan.verify != "none":
        copies, firsts = copies_of(columns["digest"], work)

    def place(row: int) -> str:
        return place_of(names[int(columns["file"][row])], int(columns["offset"][row]))

    pairs = zip(map(int, copies), map(int, firsts), strict=True)
    _write_lines(out / "duplicates.txt", (f"{place(row)} = {place(first)}" for row, first in pairs))
    if not len(columns["file"]):
        lists = [f"{out}/{name}" for name in (UNDECODABLE, CUT_OFF) if (out / name).stat().st_size]
        see = f"; for the reasons, see {' and '.join(lists)}" if lists else ""
        raise UserError(f"{plan.root} holds no image that can be used{see}")
    sizes = {}
    if plan.source != "folder":
        paths = [os.path.join(plan.root, name) for name in names]
        sizes = dict(zip(names, shard_sizes(paths).tolist(), strict=True))
    dropped = copies if drop_duplicates else copies[:0]
    examples = write_columns(columns, work, dropped, file_labels)
    stored_names = Names.of(names)
    np.save(work / "names.npy", stored_names.text)
    np.save(work / "name_ends.npy", stored_names.ends)
    counts = {
        "undecodable": joined.undecodable, "duplicates": len(copies), "cut_off": len(problems)
    }  # fmt: skip
    facts = {"source": plan.source, "verify": plan.verify, "sizes": sizes, "request": request}
    # A run that has mapped old columns keeps reading them, because a rename does not overwrite
    # their content. While old and new columns are mixed, no `index.json` marks them as complete.
    (out / FACTS).unlink(missing_ok=True)
    for column in work.glob("*.npy"):
        column.replace(out / column.name)
    write_facts(out, facts | counts, examples, label_names)
    shutil.rmtree(work)
    print(f"{examples} examples indexed in {time.monotonic() - started:.1f}s")
    if plan.verify == "none":
        print("the images were not read, so undecodable images and duplicates are not known")
        return
    undecodable = f"{shown(str(out))}/{UNDECODABLE}"
    print(f"{counts['undecodable']} undecodable images are left out; see {undecodable}")
    kept = "left out" if drop_duplicates else "kept (use --drop_duplicates to leave them out)"
    print(f"{counts['duplicates']} duplicates are {kept}; see {shown(str(out))}/duplicates.txt")


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines to a text file, preserving the bytes of file names that are not UTF-8."""
    with path.open("w", errors="surrogateescape") as file:
        file.writelines(f"{line}\n" for line in lines)


class Progress:
    """A callback that prints the percentage of finished work, at most once every
    `PROGRESS_SECONDS`."""

    def __init__(self) -> None:
        self._next = time.monotonic() + PROGRESS_SECONDS

    def __call__(self, done: int, units: int) -> None:
        """Print the percentage of finished units if `PROGRESS_SECONDS` have passed since the last
        line."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            print(f"{100 * done / units:.0f}% done", flush=True)
