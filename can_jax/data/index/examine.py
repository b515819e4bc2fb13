"""Examination of every example of a data set: read, decoded once and hashed, by many processes.

The work is split into units: one shard, or `UNIT` files of a folder. The result of each finished
unit is stored in a file until all units are finished, so that an interrupted command can resume.
"""

import collections
import concurrent.futures
import dataclasses
import functools
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
from can_jax.data.storage.files import STAT_THREADS, size_of
from can_jax.data.storage.reading import OpenFiles, stop_if_storage_fails
from can_jax.data.storage.remote import is_remote
from can_jax.data.storage.splits import shown
from can_jax.utils.archives import read_npz
from can_jax.utils.cpu import end_with_parent
from can_jax.utils.errors import UserError, one_line, reason_of
from can_jax.utils.files import replacing
from can_jax.utils.tensorflow import tensorflow

UNIT = 200  # files of a folder that are examined together
PARTS = 2  # the format version of stored parts; parts of other versions are not reused
VERIFY = ("decode", "read", "none")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The data to index, and how thoroughly to verify it.

    Attributes:
        source: The kind of data, `folder`, `tfrecord` or `webdataset`.
        root: The folder to which file names are relative.
        verify: `decode` decodes every image. `read` reads and hashes every byte but decodes only
            the header, which misses truncated images. `none` trusts the headers of shards and the
            names of files.
        image_key, label_key: The features of TFRecords that hold the image and the label.
        max_pixels: The limit on width times height; a larger image counts as undecodable.
        value_range: The values of black and white in images of more than 8 bits, or None; images
            that violate the rules of `can_jax.data.decoding.depth` count as undecodable.
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
        """The number of files examined together: `UNIT` for a folder, one shard otherwise."""
        return UNIT if self.source == "folder" else 1


class Part(NamedTuple):
    """The examples found in the files of one unit.

    Attributes:
        which: The file of each example, counted from the first file of the unit.
        offset: The offset of each example in its file, in bytes.
        length: The length of each example in bytes; -1 is the whole file.
        label: The label of each example; -1 where unknown.
        digest: The first 8 bytes of BLAKE2b of each example's content; 0 if it was not read.
        reason: The reason why each example cannot be decoded; "" if it can.
        problems: A description of each damaged shard.
        unused: The number of members that are not examples, as `kind=count` strings.
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
    """Examine every example in some files."""
    rows: list[tuple[int, int, int, int, int, str]] = []
    problems = []
    unused: collections.Counter[str] = collections.Counter()
    files, parse = OpenFiles(), None
    if plan.source == "tfrecord":
        parse = example_parser(plan.image_key, plan.label_key)
    for index, name in enumerate(names):
        path = os.path.join(plan.root, name)
        if plan.source == "folder":
            examples = [(0, -1, -1)]
        else:
            scan = scan_shard(plan.source, path)
            unused += scan.unused
            examples = list(zip(scan.offset, scan.length, scan.label, strict=True))
            if scan.problem:
                problems.append(cut_off(name, scan))
        for offset, length, label in examples:
            facts = (int(label), 0, "")
            if plan.verify != "none":
                facts = _examine_one(plan, files, path, int(offset), int(length), int(label), parse)
            rows.append((index, int(offset), int(length), *facts))
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
    """Return the label and digest of one example, and the reason why it cannot be decoded or ""."""
    try:
        content = read_example(files[path], offset, length, parse)
    except UserError:
        raise
    except Exception as error:  # remote file systems raise their own types
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
    """Return the reason why neither decoder can read an image, or "" if one of them can.

    Args:
        encoded: The content of the image file.
        max_pixels: The limit on width times height.
        value_range: The values of black and white in images of more than 8 bits, or None.
        whole: Whether to decode the whole image; otherwise only its header is read.
    """
    try:
        if whole:
            decode.pillow_pixels(encoded, 3, max_pixels, False, value_range)
        else:
            with open_image(encoded, max_pixels):
                pass
    except Exception as error:  # Pillow raises many types of exception
        reason = " ".join(str(error).split()).split(" <_io")[0] or type(error).__name__
    else:
        return ""
    try:  # in rare cases TensorFlow reads an image that Pillow does not
        decode.native_size(encoded, max_pixels)
        decode.native_pixels(encoded, 3, value_range=value_range)
    except (tensorflow().errors.OpError, UnicodeDecodeError):
        return reason
    return ""


def examine_all(
    plan: Plan, names: list[str], parts: Path, workers: int, progress: Callable[[int, int], None]
) -> Iterator[Part]:
    """Examine all files in several processes, reusing the stored parts of an interrupted call.

    The files are looked up before only if there are such parts.

    Args:
        plan: The data to index, and how to verify it.
        names: The files, relative to the plan's root.
        parts: The folder that stores finished parts.
        workers: The number of processes.
        progress: A callback that takes the numbers of finished units and of all units.
    """
    units = [names[start : start + plan.unit] for start in range(0, len(names), plan.unit)]
    prints = [""] * len(units)
    if any(path.suffix == ".npz" for path in parts.iterdir()):
        with concurrent.futures.ThreadPoolExecutor(STAT_THREADS) as threads:
            prints = list(threads.map(functools.partial(_fingerprint, plan), units))
    todo = [i for i, text in enumerate(prints) if not text or not _path(parts, text).exists()]
    done = len(units) - len(todo)
    progress(done, len(units))
    for index, (prints[index], part) in _in_processes(plan, units, todo, workers):
        # Another call may write the same part.
        own = f".{socket.gethostname()}-{os.getpid()}.tmp"
        path = _path(parts, prints[index])
        with replacing(path, own) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **part._asdict())
        done += 1
        progress(done, len(units))
    return (_load(_path(parts, text)) for text in prints)


def _path(parts: Path, fingerprint: str) -> Path:
    """Return the path of a stored part."""
    return parts / f"{fingerprint}.npz"


def _examine_unit(plan: Plan, names: list[str]) -> tuple[str, Part]:
    """Return the fingerprint of a unit before its examination, and the result."""
    return _fingerprint(plan, names), examine(plan, names)


def _in_processes(
    plan: Plan, units: list[list[str]], todo: list[int], workers: int
) -> Iterator[tuple[int, tuple[str, Part]]]:
    """Yield the index, the fingerprint and the result of each unit as it finishes."""
    if workers == 1 or len(todo) < 2:
        yield from ((index, _examine_unit(plan, units[index])) for index in todo)
        return
    context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
    count = min(workers, len(todo))
    with concurrent.futures.ProcessPoolExecutor(count, context, _start_worker) as pool:
        futures = {pool.submit(_examine_unit, plan, units[index]): index for index in todo}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures.pop(future), future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    """Prepare a worker process: end it with its parent, and silence Pillow's warnings."""
    end_with_parent()
    warnings.filterwarnings("ignore", module="PIL")  # undecodable images are listed anyway


def _load(path: Path) -> Part:
    """Return a stored part.

    Raises:
        UserError: The file is damaged.
    """
    try:
        content = read_npz(path)
        return Part(**{field: content[field] for field in Part._fields})
    except (UserError, KeyError) as error:
        raise UserError(f"{shown(str(path))}: {one_line(error)}; delete it") from error


def _fingerprint(plan: Plan, names: list[str]) -> str:
    """Return a digest of a unit and its plan, which changes with any file's name, size or mtime."""
    digest = hashlib.blake2b(repr((PARTS, plan)).encode(), digest_size=16)
    for name in names:
        path = os.path.join(plan.root, name)
        try:
            state = [size_of(path)]
            if not is_remote(path):
                state.append(os.stat(path).st_mtime_ns)
        except OSError as error:  # such as a broken link
            state = [error.errno or 0]
        digest.update(repr((name, state)).encode())
    return digest.hexdigest()
