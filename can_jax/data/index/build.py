"""The index builder: one table of all usable examples, with lists of broken and duplicate ones."""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np

from can_jax.data.formats.webdataset import from_text, list_unused
from can_jax.data.index.examine import Part, Plan, examine_all
from can_jax.data.index.folder_lock import only_writer
from can_jax.data.sources.example_table import FACTS, Table
from can_jax.data.sources.shards import first_of
from can_jax.data.storage.files import Names, size_of
from can_jax.data.storage.splits import shown
from can_jax.utils.errors import UserError

PROGRESS_SECONDS = 10


def build_index(
    plan: Plan,
    names: list[str],
    out: Path,
    workers: int,
    *,
    file_labels: np.ndarray | None = None,
    label_names: tuple[str, ...] = (),
    drop_duplicates: bool = False,
) -> None:
    """Examine all files, write their index, and print a summary.

    Blocks while another process writes the same index, and then uses the index of that process if
    it was built from the same request.

    Args:
        plan: The data to index, and how to verify it.
        names: The files, relative to the plan's root.
        out: The folder of the index; created if missing.
        workers: The number of processes.
        file_labels: The label of each file, if its path determines the label.
        label_names: The names of the classes; empty if unknown.
        drop_duplicates: Whether to keep only the first of several examples with the same content.

    Raises:
        UserError: There is no file, no example can be decoded, or the folder cannot be written.
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
        (out / "parts").mkdir(parents=True, exist_ok=True)
        writer = only_writer(out, wait)
        with writer:
            if waited and _request_of(out) == digest:
                print(f"{shown(str(out))} was written by the other process", flush=True)
                return
            (out / "parts").mkdir(parents=True, exist_ok=True)
            _build(plan, names, out, workers, file_labels, label_names, drop_duplicates, digest)
    except PermissionError as error:
        raise UserError(
            f"{shown(str(out))} cannot be written; give another folder with --out"
        ) from error


def _request_of(out: Path) -> str | None:
    """Return the digest of the request from which an index was built, or None without an index."""
    try:
        return json.loads((out / FACTS).read_text()).get("request")
    except (OSError, ValueError):
        return None


def _build(
    plan: Plan,
    names: list[str],
    out: Path,
    workers: int,
    file_labels: np.ndarray | None,
    label_names: tuple[str, ...],
    drop_duplicates: bool,
    request: str,
) -> None:
    """Write an index into a folder to which no other process writes."""
    started = time.monotonic()
    kind = "files" if plan.source == "folder" else "shards"
    print(f"{len(names)} {kind} in {shown(plan.root)}, index in {shown(str(out))}", flush=True)
    parts = examine_all(plan, names, out / "parts", workers, Progress())
    whole, reason = join_parts(plan, names, parts)
    if file_labels is not None:
        whole = dataclasses.replace(whole, label=file_labels[whole.file])
    good = reason == ""
    copies = copies_of(whole.digest, good) if plan.verify != "none" else {}
    dropped = list(copies) if drop_duplicates else []
    keep = good & ~np.isin(np.arange(len(good)), dropped)
    lists = {
        "undecodable": [f"{whole.describe(int(i))}: {reason[i]}" for i in np.flatnonzero(~good)],
        "duplicates": [
            f"{whole.describe(i)} = {whole.describe(copies[i])}" for i in sorted(copies)
        ],
        "cut_off": [str(problem) for part in parts for problem in part.problems],
    }
    for name, lines in lists.items():
        text = "".join(f"{line}\n" for line in lines)  # preserves names that are not UTF-8
        (out / f"{name}.txt").write_text(text, errors="surrogateescape")
    if problems := lists["cut_off"]:
        print(f"warning: {shown(first_of(problems))}; see {shown(str(out))}/cut_off.txt")
    if unused := from_text(line for part in parts for line in part.unused):
        print(f"members of tars that are not used: {list_unused(unused)}")
    if not keep.any():
        raise UserError(f"nothing in {plan.root} can be decoded; see {out}/undecodable.txt")
    sizes = {} if plan.source == "folder" else {name: file_size(plan, name) for name in names}
    facts = {"source": plan.source, "verify": plan.verify, "sizes": sizes, "request": request}
    counts = {name: len(lines) for name, lines in lists.items()}
    dataclasses.replace(whole.select(keep), label_names=label_names).save(out, facts | counts)
    shutil.rmtree(out / "parts")
    print(f"{int(keep.sum())} examples indexed in {time.monotonic() - started:.1f}s")
    print(f"{counts['undecodable']} undecodable, left out; see {shown(str(out))}/undecodable.txt")
    kept = "left out" if drop_duplicates else "kept (--drop_duplicates leaves them out)"
    print(f"{counts['duplicates']} duplicates, {kept}; see {shown(str(out))}/duplicates.txt")


class Progress:
    """A progress callback that prints the percentage done at most every `PROGRESS_SECONDS`."""

    def __init__(self) -> None:
        self._next = time.monotonic() + PROGRESS_SECONDS

    def __call__(self, done: int, units: int) -> None:
        """Print the progress if it is due: ``done`` of ``units`` are finished."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            print(f"{100 * done / units:.0f}% done", flush=True)


def file_size(plan: Plan, name: str) -> int:
    """Return the size of a file in bytes."""
    return size_of(os.path.join(plan.root, name))


def join_parts(plan: Plan, names: list[str], parts: list[Part]) -> tuple[Table, np.ndarray]:
    """Return a table of all examples, and the reason why each cannot be decoded ("" if it can)."""
    file = [part.which.astype(np.int64) + plan.unit * index for index, part in enumerate(parts)]

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    table = Table(
        names=Names.of(names),
        file=np.concatenate(file).astype(np.int32),
        offset=column("offset"),
        length=column("length"),
        label=column("label"),
        digest=column("digest"),
    )
    return table, column("reason")


def copies_of(digest: np.ndarray | None, good: np.ndarray) -> dict[int, int]:
    """Map each example that duplicates an earlier one to the first example with the same content.

    Args:
        digest: The content digest of each example.
        good: Whether each example can be decoded; others are ignored.
    """
    assert digest is not None
    rows = np.flatnonzero(good)
    order = rows[np.argsort(digest[rows], kind="stable")]
    same = np.flatnonzero(digest[order[1:]] == digest[order[:-1]]) + 1
    first: dict[int, int] = {}
    for i in same:
        before = int(order[i - 1])
        first[int(order[i])] = first.get(before, before)
    return first
