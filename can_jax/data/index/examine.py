"""The examination of a data set: workers read, decode and hash each of its examples.

The work is divided into units: one shard, or `UNIT` image files of a folder. To let an interrupted
command resume, the result of each unit is stored in a separate file until the index is written.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from can_jax.data.decoding import decode
from can_jax.data.decoding.depth import Range
from can_jax.data.decoding.open_image import open_image
from can_jax.data.formats.records import ParseRecord
from can_jax.data.formats.webdataset import as_text
from can_jax.data.sources.indexed import read_example
from can_jax.data.sources.shards import (
    IMAGE_KEY,
    LABEL_KEY,
    cut_off,
    example_parser,
    scan_shard,
)
from can_jax.data.storage.files import STAT_THREADS, size_of
from can_jax.data.storage.reading import OpenFiles, stop_if_storage_fails
from can_jax.data.storage.remote import is_remote
from can_jax.data.storage.splits import shown
from can_jax.utils.archives import read_npz
from can_jax.utils.errors import UserError, one_line, reason_of
from can_jax.utils.files import replacing
from can_jax.utils.tensorflow import tensorflow
from can_jax.utils.workers import Workers

UNIT = 200  # files of a folder that are examined together
PART_FORMAT = 3  # the version of stored parts; parts of other versions are not reused
VERIFY = ("decode", "read", "none")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The kind and location of the data to index, and how thoroughly to check each image.

    Attributes:
        source: The kind of data: `folder`, `tfrecord` or `webdataset`.
        root: The path or URL of the folder to which the names of files are relative.
        verify: The check to apply to each image: `decode`, `read` or `none`. The check `decode`
            hashes and decodes every image. The check `read` hashes every image but decodes only its
            header, so it does not detect truncated images. With `none`, no image is checked, and
            only the headers of shards and the names of files are read.
        image_key, label_key: The names of the TFRecord features that contain the encoded image and
            the integer label.
        max_pixels: The maximum width times height in pixels; a larger image counts as undecodable.
        value_range: The two pixel values that are mapped to 0 and 255 in images of more than 8 bits
            a channel; None if no range is given. Images that `can_jax.data.decoding.depth` rejects
            count as undecodable.
    """

    source: str
    root: str
    verify: str = "decode"
    image_key: str = IMAGE_KEY
    label_key: str | None = LABEL_KEY
    max_pixels: int = 50_000_000
    value_range: Range = None

    @property
    def unit(self) -> int:
        """The number of files in a unit of work: `UNIT` for image files in a folder, 1 for
        shards."""
        return UNIT if self.source == "folder" else 1


class Part(NamedTuple):
    """The result of a unit of work: its examples and its damaged shards.

    Attributes:
        which: The index of each example's file among the files of the unit.
        offset: The byte offset of each example in its file.
        length: The length of each example in bytes; -1 for a whole file.
        label: The label of each example; -1 if unknown.
        digest: The 8-byte BLAKE2b hash of each example's content as an integer; 0 if the content
            was not read.
        reason: The reason why each example cannot be decoded; "" for an example that can be decoded
            or was not checked.
        problems: One sentence for each damaged shard.
        unused: The number of unused tar members of each kind, as `kind=count` strings.
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
    """Check every example in the files ``names`` as ``plan.verify`` requires, and return a `Part`.

    Raises:
        UserError: This machine does not have the folder ``plan.root``, or reading a file fails with
            an I/O error, even after retries.
    """
    if not is_remote(plan.root) and not os.path.isdir(plan.root):
        raise UserError(f"{shown(plan.root)} does not exist on {socket.gethostname()}")
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
    dtypes = (np.int32, np.int64, np.int64, np.int32, np.uint64, str)
    columns = zip(*rows, strict=True) if rows else [()] * len(dtypes)
    arrays = [np.array(column, dtype) for column, dtype in zip(columns, dtypes, strict=True)]
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
    """Return the label and digest of an example, and the reason why the example cannot be decoded,
    or "" if it can."""
    try:
        content = read_example(files.get(path, str), offset, length, parse)
    except UserError:
        raise
    except Exception as error:  # remote file systems raise their own types
        stop_if_storage_fails(path, error)
        return label, 0, f"cannot be read: {shown(reason_of(error))}"
    if parse:
        content, label = parse(content)
        if not content:
            return label, 0, f"has no image in the feature {plan.image_key!r}"
    digest = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    whole = plan.verify == "decode"
    return label, digest, why_undecodable(content, plan.max_pixels, plan.value_range, whole=whole)


def why_undecodable(
    encoded: bytes, max_pixels: int, value_range: Range = None, *, whole: bool
) -> str:
    """Return the reason why neither Pillow nor TensorFlow can decode an image, or "" if one of them
    can.

    Args:
        encoded: The bytes of the image file.
        max_pixels: The maximum width times height in pixels.
        value_range: The two pixel values that are mapped to 0 and 255 in images of more than 8 bits
            a channel; None if no range is given.
        whole: Whether to decode the whole image with Pillow, rather than only its header.
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
    try:  # in rare cases TensorFlow decodes an image that Pillow rejects
        decode.native_size(encoded, max_pixels)
        decode.native_pixels(encoded, 3, value_range=value_range)
    except (tensorflow().errors.OpError, UnicodeDecodeError):
        return reason
    return ""


def examine_all(
    plan: Plan,
    names: list[str],
    parts: Path,
    workers: Workers,
    progress: Callable[[int, int], None],
) -> Iterator[Part]:
    """Examine all files with ``workers``, and return the `Part` of each unit, in the order of
    ``names``.

    The stored parts of an interrupted call are reused. If there are stored parts, the fingerprints
    of all units are computed first, to find the parts that can be reused.

    Args:
        plan: The kind and location of the data, and how thoroughly to check each image.
        names: The paths of the files, relative to ``plan.root``.
        parts: The existing folder in which the results of finished units are stored.
        workers: The processes among which the work is divided.
        progress: A callback that is called with the number of finished units and the total number
            of units.

    Raises:
        UserError: Examining a unit fails (see `examine`), the workers fail (see `Workers.results`),
            or a stored part is damaged.
    """
    units = [names[start : start + plan.unit] for start in range(0, len(names), plan.unit)]
    fingerprints = [""] * len(units)
    if any(path.suffix == ".npz" for path in parts.iterdir()):
        with concurrent.futures.ThreadPoolExecutor(STAT_THREADS) as threads:
            fingerprints = list(threads.map(functools.partial(_fingerprint, plan), units))
    todo = [i for i, text in enumerate(fingerprints) if not text or not _path(parts, text).exists()]
    done = len(units) - len(todo)
    progress(done, len(units))
    work = functools.partial(_examine_unit, plan)
    for number, (fingerprint, part) in workers.results(work, [units[i] for i in todo]):
        fingerprints[todo[number]] = fingerprint
        # Another call may write the same part.
        own = f".{socket.gethostname()}-{os.getpid()}.tmp"
        path = _path(parts, fingerprint)
        with replacing(path, own) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **part._asdict())
        done += 1
        progress(done, len(units))
    return (_load(_path(parts, text)) for text in fingerprints)


def _path(parts: Path, fingerprint: str) -> Path:
    """Return the path of the file that stores the result of the unit with the given fingerprint."""
    return parts / f"{fingerprint}.npz"


def _examine_unit(plan: Plan, names: list[str]) -> tuple[str, Part]:
    """Return the fingerprint of a unit, computed before the examination of its files, and the
    resulting `Part`."""
    return _fingerprint(plan, names), examine(plan, names)


def _load(path: Path) -> Part:
    """Return the result of a unit from the file that stores it.

    Raises:
        OSError: The file cannot be read.
        UserError: The file is damaged.
    """
    try:
        content = read_npz(path)
        return Part(**{field: content[field] for field in Part._fields})
    except (UserError, KeyError) as error:
        raise UserError(f"{shown(str(path))}: {one_line(error)}; delete this file") from error


def _fingerprint(plan: Plan, names: list[str]) -> str:
    """Return a digest of a plan, of the names and sizes of a unit's files, and of the modification
    times of local files."""
    digest = hashlib.blake2b(repr((PART_FORMAT, plan)).encode(), digest_size=16)
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
