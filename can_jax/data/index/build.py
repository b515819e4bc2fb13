"""Building an index: what was found, in one table, with lists of what is amiss."""

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
    """Examine all files, write their index, and print what was found.

    If another process is writing the same index, wait for it, and take what it wrote.

    Args:
        plan: what is to be done.
        names: files, relative to the plan's root.
        out: folder of the index.
        workers: processes.
        file_labels: the label of each file, where its place tells.
        label_names: of the classes, if known.
        drop_duplicates: keep only the first of examples with the same content.

    Raises:
        UserError: nothing can be decoded.
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
    """Return the digest of what an index was asked to hold; None without one."""
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
    """Write an index into a folder that no other process writes to."""
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
        text = "".join(f"{line}\n" for line in lines)  # with the very bytes of the names
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
    dataclasses.replace(select(whole, keep), label_names=label_names).save(out, facts | counts)
    shutil.rmtree(out / "parts")
    print(f"{int(keep.sum())} examples indexed in {time.monotonic() - started:.1f}s")
    print(f"{counts['undecodable']} undecodable, left out; see {shown(str(out))}/undecodable.txt")
    kept = "left out" if drop_duplicates else "kept (--drop_duplicates leaves them out)"
    print(f"{counts['duplicates']} duplicates, {kept}; see {shown(str(out))}/duplicates.txt")


class Progress:
    """Says now and then how far it is."""

    def __init__(self) -> None:
        self._next = time.monotonic() + PROGRESS_SECONDS

    def __call__(self, done: int, units: int) -> None:
        """``done`` of ``units`` are finished."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            print(f"{100 * done / units:.0f}% done", flush=True)


def file_size(plan: Plan, name: str) -> int:
    """Bytes of a file."""
    return size_of(os.path.join(plan.root, name))


def join_parts(plan: Plan, names: list[str], parts: list[Part]) -> tuple[Table, np.ndarray]:
    """One table of all that was found, and why each of it cannot be decoded, "" if it can."""
    file = [part.which.astype(np.int64) + plan.unit * number for number, part in enumerate(parts)]

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


def select(table: Table, rows: np.ndarray) -> Table:
    """Some rows of a table. Files without any keep their names, for rows count files."""
    columns = ("file", "offset", "length", "label", "digest")
    return dataclasses.replace(table, **{name: getattr(table, name)[rows] for name in columns})


def copies_of(digest: np.ndarray | None, good: np.ndarray) -> dict[int, int]:
    """Examples that have the content of an earlier one, which is given."""
    assert digest is not None
    rows = np.flatnonzero(good)
    order = rows[np.argsort(digest[rows], kind="stable")]
    same = np.flatnonzero(digest[order[1:]] == digest[order[:-1]]) + 1
    first: dict[int, int] = {}
    for place in same:
        before = int(order[place - 1])
        first[int(order[place])] = first.get(before, before)
    return first
