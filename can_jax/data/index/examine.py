"""Looking at every example of a data set: found, read, decoded once and hashed, by many processes.

The work is cut into units, a shard or some hundred files, and what was found in each is kept in a
file until all are done: so a second call goes on where the first was stopped.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from can_jax.data.decoding import decode
from can_jax.data.decoding.depth import Range
from can_jax.data.decoding.open_image import open_image
from can_jax.data.formats.webdataset import as_text
from can_jax.data.sources.indexed import ParseRecord, read_example
from can_jax.data.sources.shards import cut_off, example_parser, scan_shard
from can_jax.data.storage.files import size_of
from can_jax.data.storage.reading import OpenFiles, is_remote, stop_if_storage_fails
from can_jax.data.storage.splits import shown
from can_jax.utils.archives import read_npz
from can_jax.utils.cpu import end_with_parent
from can_jax.utils.errors import UserError, one_line, reason_of
from can_jax.utils.tensorflow import tensorflow

UNIT = 200  # files of a folder
PARTS = 2  # the form of the finished parts, which others cannot be read as
VERIFY = ("decode", "read", "none")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be indexed, and how carefully.

    Attributes:
        source: `folder`, `tfrecord` or `webdataset`.
        root: of the names.
        verify: `decode` every image; `read` and hash every byte, but decode the header of an image
            only, which misses those that are cut off; or `none`, which trusts what the headers of
            shards, and the names of files, promise.
        image_key, label_key: features of TFRecords.
        max_pixels: of an image; a larger one counts as undecodable.
        value_range: of images of more than 8 bits; those that fit no rule count as undecodable.
    """

    source: str
    root: str
    verify: str = "decode"
    image_key: str = "image/encoded"
    label_key: str | None = "image/class/label"
    max_pixels: int = 50_000_000
    value_range: Range = None

    @property
    def unit(self) -> int:
        """Files that are examined together: some of a folder, or a shard."""
        return UNIT if self.source == "folder" else 1


class Part(NamedTuple):
    """What was found in the files of a unit.

    ``which`` is the file, counted from the first of the unit. ``reason`` says why an example cannot
    be decoded, and is empty if it can; ``problems`` say where shards are damaged, and ``unused``
    counts the members that are no examples, by their kind.
    """

    which: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    label: np.ndarray
    digest: np.ndarray
    reason: np.ndarray
    problems: np.ndarray
    unused: np.ndarray


def examine(plan: Plan, names: list[str]) -> Part:
    """Look at every example in some files."""
    rows: list[tuple[int, int, int, int, int, str]] = []
    problems = []
    unused: collections.Counter[str] = collections.Counter()
    files, parse = OpenFiles(), None
    if plan.source == "tfrecord":
        parse = example_parser(plan.image_key, plan.label_key)
    for number, name in enumerate(names):
        path = os.path.join(plan.root, name)
        if plan.source == "folder":
            places = [(0, -1, -1)]
        else:
            found = scan_shard(plan.source, path)
            unused += found.unused
            places = list(zip(found.offset, found.length, found.label, strict=True))
            if found.problem:
                problems.append(cut_off(name, found))
        for offset, length, label in places:
            facts = (int(label), 0, "")
            if plan.verify != "none":
                facts = _examine_one(plan, files, path, int(offset), int(length), int(label), parse)
            rows.append((number, int(offset), int(length), *facts))
    kinds = (np.int32, np.int64, np.int64, np.int32, np.uint64, str)
    columns = zip(*rows, strict=True) if rows else [()] * len(kinds)
    arrays = [np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return Part._make([*arrays, np.array(problems, str), as_text(unused)])


def _examine_one(
    plan: Plan,
    files: OpenFiles,
    path: str,
    offset: int,
    length: int,
    label: int,
    parse: ParseRecord | None,
) -> tuple[int, int, str]:
    """Label, digest, and why it cannot be decoded, of one example."""
    try:
        content = read_example(files[path], offset, length, parse)
    except UserError:
        raise
    except Exception as error:  # a remote store has kinds of its own
        stop_if_storage_fails(path, error)
        return label, 0, f"cannot be read: {shown(reason_of(error))}"
    if parse:
        content, label = parse(content)
        if not content:
            return label, 0, f"has no feature {plan.image_key!r}"
    digest = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    whole = plan.verify == "decode"
    return label, digest, why_undecodable(content, plan.max_pixels, plan.value_range, whole=whole)


def why_undecodable(
    encoded: bytes, max_pixels: int, value_range: Range = None, *, whole: bool
) -> str:
    """Why neither decoder can read an image; empty if one of them can.

    Args:
        encoded: the image.
        max_pixels: the limit.
        value_range: of images of more than 8 bits.
        whole: decode it; otherwise only its header is looked at.
    """
    try:
        if whole:
            decode.pillow_pixels(encoded, 3, max_pixels, False, value_range)
        else:
            with open_image(encoded, max_pixels):
                pass
    except Exception as error:  # Pillow raises every kind
        reason = " ".join(str(error).split()).split(" <_io")[0] or type(error).__name__
    else:
        return ""
    try:  # rarely, TensorFlow reads what Pillow does not
        decode.native_size(encoded, max_pixels)
        decode.native_pixels(encoded, 3, value_range=value_range)
    except (tensorflow().errors.OpError, UnicodeDecodeError):
        return reason
    return ""


def examine_all(
    plan: Plan, names: list[str], parts: Path, workers: int, progress: Callable[[int, int], None]
) -> list[Part]:
    """Examine all files, with several processes; parts that are there already are taken.

    Args:
        plan: what to do.
        names: files, relative to the plan's root.
        parts: the folder where finished parts are kept.
        workers: processes.
        progress: called with the numbers of finished and of all units.
    """
    units = [names[start : start + plan.unit] for start in range(0, len(names), plan.unit)]
    paths = [parts / f"{_fingerprint(plan, unit)}.npz" for unit in units]
    todo = [number for number, path in enumerate(paths) if not path.exists()]
    done = len(units) - len(todo)
    progress(done, len(units))
    for number, part in _in_processes(plan, units, todo, workers):
        unfinished = paths[number].with_suffix(f".{socket.gethostname()}-{os.getpid()}.new")
        with open(unfinished, "wb") as file:
            np.savez(file, **part._asdict())
        os.replace(unfinished, paths[number])
        done += 1
        progress(done, len(units))
    return [_load(path) for path in paths]


def _in_processes(
    plan: Plan, units: list[list[str]], todo: list[int], workers: int
) -> Iterator[tuple[int, Part]]:
    """Units as they are finished, each with its number."""
    if workers == 1 or len(todo) < 2:
        yield from ((number, examine(plan, units[number])) for number in todo)
        return
    context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
    count = min(workers, len(todo))
    with concurrent.futures.ProcessPoolExecutor(count, context, _start_worker) as pool:
        futures = {pool.submit(examine, plan, units[number]): number for number in todo}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    end_with_parent()
    warnings.filterwarnings("ignore", module="PIL")  # what it cannot decode is listed


def _load(path: Path) -> Part:
    try:
        content = read_npz(path)
        return Part(**{field: content[field] for field in Part._fields})
    except (UserError, KeyError) as error:
        raise UserError(f"{shown(str(path))}: {one_line(error)}; delete it") from error


def _fingerprint(plan: Plan, names: list[str]) -> str:
    """Of a unit and what is done with it: another file, size or time of change gives another."""
    digest = hashlib.blake2b(repr((PARTS, plan)).encode(), digest_size=16)
    for name in names:
        path = os.path.join(plan.root, name)
        try:
            known = [size_of(path)]
            if not is_remote(path):
                known.append(os.stat(path).st_mtime_ns)
        except OSError as error:  # such as a link that leads nowhere
            known = [error.errno or 0]
        digest.update(repr((name, known)).encode())
    return digest.hexdigest()
