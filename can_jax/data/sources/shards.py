"""The sources `tfrecord` and `webdataset`, which read examples from shards by byte range."""

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from can_jax.data.formats.label_range import as_label
from can_jax.data.formats.records import ParseRecord, scan_tfrecord
from can_jax.data.formats.scan import ScanResult, found
from can_jax.data.formats.shard_reader import Read, read_tar, read_tfrecord
from can_jax.data.formats.webdataset import list_unused, scan_tar
from can_jax.data.sources.example_table import Table
from can_jax.data.sources.indexed import IndexedSource
from can_jax.data.sources.stored_index import stored_table
from can_jax.data.storage.files import Names, shard_sizes
from can_jax.data.storage.find import find_shards
from can_jax.data.storage.reading import stop_if_storage_fails
from can_jax.data.storage.remote import is_remote
from can_jax.data.storage.splits import shown
from can_jax.utils.errors import UserError, reason_of
from can_jax.utils.tensorflow import tensorflow

SCANNERS: dict[str, Callable[[str], ScanResult]] = {
    "tfrecord": scan_tfrecord,
    "webdataset": scan_tar,
}
KINDS = {"tfrecord": "tfrecord", "webdataset": "tar"}  # the `kind` of shard for `find_shards`
IMAGE_KEY, LABEL_KEY = "image/encoded", "image/class/label"  # the default features of TFRecords
SCAN_THREADS = 16
NAMED = 3  # damaged shards that a message names
FIRST_RECORDS = 16  # the number of first records of which at least one must hold an image


def open_tfrecord(
    path: str,
    split: str,
    index: str | None = None,
    cache_bytes: int = 0,
    image_key: str = IMAGE_KEY,
    label_key: str | None = LABEL_KEY,
) -> IndexedSource:
    """Open TFRecord shards whose records are `tf.train.Example` messages.

    Args:
        path: The folder, file or pattern of the shards; see `find_shards`.
        split: The name of the split, such as `train`.
        index: The folder of the index; None for the default folder beside the shards.
        cache_bytes: The size of a cache of encoded images in memory, in bytes; 0 for none.
        image_key: The name of the feature that contains the encoded image.
        label_key: The name of the feature that contains the integer label; a record without it has
            the label -1.

    Raises:
        UserError: There is no shard of the split, no record is intact, the first records contain no
            image, a shard cannot be read, or the index is invalid; see `stored_table`.
    """
    root, table = _table("tfrecord", path, split, index)
    source = IndexedSource(root, table, example_parser(image_key, label_key), cache_bytes)
    first = np.arange(min(FIRST_RECORDS, source.examples))
    if not any(source.read(first)[0]):
        features = example_features(IndexedSource(root, table).read(first)[0][0])
        raise UserError(
            f"the first records below {root} have no image in the feature {image_key!r}; the first "
            f"record has the features {', '.join(features) or 'none'}: set config.data.image_key"
        )
    return source


def open_webdataset(
    path: str, split: str, index: str | None = None, cache_bytes: int = 0
) -> IndexedSource:
    """Open WebDataset shards: tars of images, with optional labels in `.cls` members.

    Raises:
        UserError: There is no shard of the split, the shards contain no image, a shard cannot be
            read, or the index is invalid; see `stored_table`.
    """
    root, table = _table("webdataset", path, split, index)
    return IndexedSource(root, table, cache_bytes=cache_bytes)


def _table(source: str, path: str, split: str, index: str | None) -> tuple[str, Table]:
    """Return the folder of a split's shards, and the table of their examples from the index or a
    scan."""
    root, names = locate_shards(source, path, split)
    stored = stored_table(source, root, split, index, names)
    return root, scan_shards(source, root, names) if stored is None else stored


def locate_shards(
    source: str, path: str, split: str, *, compressed: bool = False
) -> tuple[str, list[str]]:
    """Return the deepest folder that contains all shards of a split, and their paths relative to
    it.

    Args:
        source: The kind of data, `tfrecord` or `webdataset`.
        path: The folder, file or pattern of the shards; see `find_shards`.
        split: The name of the split, such as `train`.
        compressed: Whether to include the compressed tars of a folder.

    Raises:
        UserError: There is no shard of the split, or the spelling of the split in the data is
            ambiguous.
    """
    shards = find_shards(path, split, KINDS[source], compressed)
    root = os.path.commonpath([os.path.dirname(shard) for shard in shards]) or "."
    if is_remote(path):
        root = root.replace(":/", "://", 1)  # `commonpath` collapses the two slashes
    return root, [os.path.relpath(shard, root) for shard in shards]


def scan_shards(source: str, root: str, names: Sequence[str]) -> Table:
    """Scan the headers of some shards, and return a table of their examples.

    The readable examples of a truncated or damaged shard are used, and the damage is logged.

    Raises:
        UserError: None of the shards contains an example, or a shard cannot be read, even after
            retries.
    """
    with ThreadPoolExecutor(SCAN_THREADS) as threads:
        paths = [os.path.join(root, name) for name in names]
        scans = list(threads.map(lambda path: scan_shard(source, path), paths))
    unused = sum((shard.unused for shard in scans), collections.Counter())
    problems = [
        cut_off(path, shard) for path, shard in zip(paths, scans, strict=True) if shard.problem
    ]
    if problems:
        logging.warning("%s", first_of(problems))
    if unused:
        logging.warning(
            "%s has tar members that are not used: %s", shown(root), list_unused(unused)
        )
    if not sum(len(shard.offset) for shard in scans):
        raise UserError(
            f"none of the {len(names)} shards has an example; {lack(paths[0], scans[0])}"
        )
    table = join(list(names), scans)
    return dataclasses.replace(table, size=shard_sizes(paths))


def scan_shard(source: str, path: str) -> ScanResult:
    """Scan the headers of a shard, and return its examples.

    If the shard cannot be opened, for example without read permission, the result has no examples,
    and its ``problem`` gives the reason.

    Raises:
        UserError: Reading fails with an I/O error, even after retries.
    """
    try:
        return SCANNERS[source](path)
    except UserError:
        raise
    except Exception as error:  # remote file systems raise their own types
        stop_if_storage_fails(path, error)
        return found([], [], [], f"cannot be read: {reason_of(error)}")


def cut_off(path: str, shard: ScanResult) -> str:
    """Return a phrase with the problem of a shard and the number of its examples that are used."""
    return f"{lack(path, shard)}; {len(shard.offset)} of its examples are used"


def lack(path: str, shard: ScanResult) -> str:
    """Return the path of a damaged or empty shard, followed by its problem."""
    empty = f"contains no image, but {list_unused(shard.unused)}" if shard.unused else "is empty"
    return f"{shown(path)} {shard.problem or empty}"


def first_of(problems: Sequence[str]) -> str:
    """Return a line with the problems of the first `NAMED` damaged shards and the number of further
    damaged shards."""
    more = len(problems) - NAMED
    rest = [f"{more} more shards have such problems"] if more > 0 else []
    return "; ".join([*problems[:NAMED], *rest])


def join(names: list[str], shards: Sequence[ScanResult]) -> Table:
    """Return a single table of the examples of several shards."""
    counts = [len(shard.offset) for shard in shards]
    return Table(
        names=Names.of(names),
        file=np.repeat(np.arange(len(names), dtype=np.int32), counts),
        offset=np.concatenate([shard.offset for shard in shards]),
        length=np.concatenate([shard.length for shard in shards]),
        label=np.concatenate([shard.label for shard in shards]),
    )


def example_parser(image_key: str, label_key: str | None) -> ParseRecord:
    """Return a function that parses a `tf.train.Example` record.

    The returned function maps a record to its encoded image and label. A missing image becomes b"".
    A label that is missing or not an integer becomes -1. Of several images or labels, the first is
    used, and a warning is logged once.
    """
    where = f"the feature {label_key!r}"
    where_image = f"the feature {image_key!r}"

    def parse(record: bytes) -> tuple[bytes, int]:
        features = example_features(record)
        image = features[image_key].bytes_list.value if image_key in features else ()
        label = features[label_key].int64_list.value if label_key in features else ()
        if not label and label_key in features:
            _log_label_type(features[label_key].WhichOneof("kind"), where)
        if len(image) > 1:
            _log_several("images", where_image)
        if len(label) > 1:
            _log_several("labels", where)
        return (image[0] if image else b"", as_label(int(label[0]), where) if label else -1)

    return parse


@functools.cache
def _log_label_type(kind: str | None, where: str) -> None:
    """Log a warning, once for each feature, if a label is stored as another type than int64."""
    if kind not in (None, "int64_list"):
        logging.warning(
            "%s is a %s, not an int64_list, so its labels count as unknown (-1)", where, kind
        )


@functools.cache
def _log_several(what: str, where: str) -> None:
    """Log a warning, once for each feature, if a record has several images or labels."""
    logging.warning("a record has several %s in %s; only the first of them is used", what, where)


def tar_reader(data: ConfigDict) -> Read:
    """Return the function that reads a shard of the source `webdataset` from start to end."""
    return functools.partial(read_tar, reported=set())


def tfrecord_reader(data: ConfigDict) -> Read:
    """Return the function that reads a shard of the source `tfrecord` from start to end."""
    parse = example_parser(data.image_key, data.label_key)
    return functools.partial(read_tfrecord, parse=parse, reported=set())


def example_features(record: bytes) -> dict:
    """Return the features of a `tf.train.Example` record by name; an empty dict for any other
    record."""
    try:
        return dict(tensorflow().train.Example.FromString(record).features.feature)
    except Exception:  # protobuf raises several types of its own
        return {}
