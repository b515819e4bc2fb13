"""The registry of data sources, from which `data.source` in a configuration selects one by name.

A user's module adds a source with ``SOURCES.register("name", SourceKind(…))``.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from can_jax.data.formats.shard_reader import Read
from can_jax.data.sources.arrays import existing_root, open_arrays, shards_of_split
from can_jax.data.sources.base import Source
from can_jax.data.sources.folder import images_of_split, open_folder, split_folder
from can_jax.data.sources.indexed import IndexedSource
from can_jax.data.sources.mixture import MixtureSource
from can_jax.data.sources.shards import (
    IMAGE_KEY,
    LABEL_KEY,
    locate_shards,
    open_tfrecord,
    open_webdataset,
    tar_reader,
    tfrecord_reader,
)
from can_jax.data.sources.synthetic_shapes import open_shapes
from can_jax.data.sources.tfds import locate_tfds, open_tfds
from can_jax.data.storage.splits import SPELLINGS, AmbiguousSplitError
from can_jax.utils.errors import UserError
from can_jax.utils.registry import Registry
from can_jax.utils.settings import Key


@dataclasses.dataclass(frozen=True)
class ShardFormat:
    """A format of shards that can be read sequentially, as `data.streaming` requires.

    Attributes:
        locate: A function that locates the shards of a split, given a config block `data` and the
            split. ``locate`` returns the folder that contains the shards, and their file names.
        reader: A function that returns a reader of shards, given a config block `data`. The
            returned reader takes the path of a shard, and yields the encoded image and the label of
            each record.
        no_image: The error message if the first records of a shard contain no image; the path of
            the shard is put before the message. Each `{key}` in the message is replaced by the
            value of that key of `data`. If ``no_image`` is empty, no error is raised, and the next
            shard is tried.
    """

    locate: Callable[[ConfigDict, str], tuple[str, list[str]]]
    reader: Callable[[ConfigDict], Read]
    no_image: str = ""


@dataclasses.dataclass(frozen=True)
class SourceKind:
    """A kind of data source, which `data.source` selects by name.

    Attributes:
        open: A function that opens a source, given a config block `data` and a split. ``open``
            raises `UserError` if the data or the split does not exist.
        locate: A cheaper function with the arguments and errors of ``open``, which checks whether a
            split exists; None to use ``open`` for this check.
        needs: The required keys of `data`, each mapped to the advice in the error message if the
            key is not set.
        options: The source's own settings by name, which `data.options` sets; see `options_of`.
        holds_files: Whether the images are encoded files, which are decoded to 1, 3 or 4 channels.
        shards: The format of the shards; None if the source cannot be streamed.
    """

    open: Callable[[ConfigDict, str], Source]
    locate: Callable[[ConfigDict, str], object] | None = None
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    _: dataclasses.KW_ONLY
    options: Mapping[str, Key] = dataclasses.field(default_factory=dict)
    holds_files: bool = False
    shards: ShardFormat | None = None


SOURCES: Registry[SourceKind] = Registry("data source")


def options_of(data: ConfigDict) -> dict[str, Any]:
    """Return the options of a validated config block by name; unset options have their
    defaults."""
    defaults = {name: key.default for name, key in SOURCES.get(data.source).options.items()}
    return defaults | dict(data.options)


def open_source(data: ConfigDict, split: str) -> Source:
    """Open the data source that a validated config block selects.

    Args:
        data: The config block `data`, which selects the source.
        split: The name of the split, such as `train`.

    Raises:
        UserError: The data does not exist, cannot be read, or contains no example of the split.
    """
    source = SOURCES.get(data.source).open(data, split)
    if not source.examples:
        raise UserError(f"config.data.path={data.path} contains no example of the split {split!r}")
    return source


def available_splits(data: ConfigDict, problems: dict[str, str] | None = None) -> tuple[str, ...]:
    """Return which of the splits `train`, `val` and `test` exist in the data of a validated config
    block.

    A returned split can be opened by its standard name, even if the data spells the name
    differently. A split is not returned if the data spells its name in several ways, none of which
    is the standard name.

    Args:
        data: The config block `data`, which selects the source.
        problems: A dict to which the error message of each ambiguous split is added, by split; None
            to discard the messages.
    """
    # `logger.level` is restored rather than the effective level, which may be the root logger's.
    logger = logging.get_absl_logger()
    level = logger.level
    logger.setLevel("ERROR")  # warnings about files of other splits are expected
    try:
        return tuple(s for s in SPELLINGS if _has(data, s, {} if problems is None else problems))
    finally:
        logger.setLevel(level)


def _has(data: ConfigDict, split: str, problems: dict[str, str]) -> bool:
    """Return whether the data has a split; if the spelling of the split is ambiguous, add the error
    message to ``problems``."""
    kind = SOURCES.get(data.source)
    try:
        (kind.locate or kind.open)(data, split)
    except AmbiguousSplitError as error:
        problems[split] = str(error)
        return False
    except UserError:
        return False
    return True


def _locate_arrays(data: ConfigDict, split: str) -> None:
    shards_of_split(existing_root(data.path), split)


def _locate_folder(data: ConfigDict, split: str) -> None:
    if split != "train" and split_folder(data.path, split) is None:
        images_of_split(data.path, split)


def _locate_shards(data: ConfigDict, split: str) -> None:
    locate_shards(data.source, data.path, split, compressed=data.streaming)


def _locate_tfds(data: ConfigDict, split: str) -> None:
    locate_tfds(data.name, data.path, split)


def _locate_mixture(data: ConfigDict, split: str) -> None:
    for block, _ in parts_of_mixture(data):
        kind = SOURCES.get(block.source)
        (kind.locate or kind.open)(block, block.split or split)


def _log_unused(data: ConfigDict, unused: Mapping[str, str | None]) -> None:
    """Log a warning for each unused key that is set to a value other than its default.

    Args:
        data: The config block `data`.
        unused: The keys that the source does not use, each mapped to its default.
    """
    for key, default in unused.items():
        if data[key] and data[key] != default:
            logging.warning(
                "config.data.%s=%s is not used with config.data.source=%s",
                key, data[key], data.source,
            )  # fmt: skip


def _shapes(data: ConfigDict, split: str) -> Source:
    _log_unused(data, {"index": None})
    return open_shapes(data.shapes_count, data.image_size, data.channels, split)


def _arrays(data: ConfigDict, split: str) -> Source:
    _log_unused(data, {"index": None})
    return open_arrays(data.path, split, data.channels)


def _folder(data: ConfigDict, split: str) -> Source:
    return _cached(data, open_folder(data.path, split, data.index, cache_bytes(data), data.labels))


def _tfrecord(data: ConfigDict, split: str) -> Source:
    keys = data.image_key, data.label_key
    return _cached(data, open_tfrecord(data.path, split, data.index, cache_bytes(data), *keys))


def _webdataset(data: ConfigDict, split: str) -> Source:
    return _cached(data, open_webdataset(data.path, split, data.index, cache_bytes(data)))


def _tfds(data: ConfigDict, split: str) -> Source:
    _log_unused(data, {"image_key": IMAGE_KEY, "label_key": LABEL_KEY})
    return _cached(data, open_tfds(data.name, data.path, split, data.index, cache_bytes(data)))


def _mixture(data: ConfigDict, split: str) -> Source:
    if data.index:
        logging.warning(
            "config.data.index=%s is not used for a mixture; set `index` in its parts", data.index
        )
    sources: list[Source] = []
    weights: list[float] = []
    for block, weight in parts_of_mixture(data):
        if not block.split and split != data.split:
            block = without_index(block)  # it is the index of the training split
        sources.append(open_source(block, block.split or split))
        weights.append(weight)
    return MixtureSource(sources, weights)


def without_index(data: ConfigDict) -> ConfigDict:
    """Return a copy of a config block `data` without the folder of the index, so that only an index
    inside the data folder is used."""
    return ConfigDict(data.to_dict() | {"index": None})


def parts_of_mixture(data: ConfigDict) -> list[tuple[ConfigDict, float]]:
    """Return the config block and the sampling weight of each part of a mixture.

    The config block of a part is that of the mixture, updated with the settings of the part. The
    source of a part is `folder` by default; `split`, `index` and `options` are not taken from the
    mixture. A ``split`` in the settings of a part replaces the requested split. The size of a cache
    is divided equally among the parts that do not set it themselves.
    """
    parts = []
    sizes = {
        key: data[key] / max(1, sum(key not in part for part in data.mixture))
        for key in ("cache_gb", "disk_cache_gb")
    }
    defaults = {"source": "folder", "split": None, "mixture": (), "index": None, "options": ()}
    for changes in data.mixture:
        block = ConfigDict(data.to_dict() | defaults | sizes)
        block.update({key: value for key, value in changes.items() if key != "weight"})
        parts.append((block, float(changes.get("weight", 1.0))))
    return parts


def cache_bytes(data: ConfigDict) -> int:
    """Return the maximum size in bytes of a process's cache of encoded images in memory."""
    return int(data.cache_gb * 1e9)


def _cached(data: ConfigDict, source: IndexedSource) -> Source:
    """Enable the disk cache of a source if ``data`` configures one, and return the source."""
    if data.disk_cache:
        source.cache_on_disk(data.disk_cache, int(data.disk_cache_gb * 1e9))
    return source


def _stream(source: str) -> Callable[[ConfigDict, str], tuple[str, list[str]]]:
    return lambda data, split: locate_shards(source, data.path, split, compressed=True)


def _path(source: str) -> dict[str, str]:
    return {"path": f"give the path of the data for config.data.source={source}"}


TFRECORDS = ShardFormat(
    _stream("tfrecord"),
    tfrecord_reader,
    "has no image in the feature {image_key!r}; set config.data.image_key",
)
SOURCES.register("shapes", SourceKind(_shapes, lambda data, split: None))
SOURCES.register("arrays", SourceKind(_arrays, _locate_arrays, _path("arrays")))
SOURCES.register("folder", SourceKind(_folder, _locate_folder, _path("folder"), holds_files=True))
SOURCES.register(
    "tfrecord",
    SourceKind(_tfrecord, _locate_shards, _path("tfrecord"), holds_files=True, shards=TFRECORDS),
)
SOURCES.register(
    "webdataset",
    SourceKind(
        _webdataset, _locate_shards, _path("webdataset"), holds_files=True,
        shards=ShardFormat(_stream("webdataset"), tar_reader),
    ),
)  # fmt: skip
SOURCES.register(
    "tfds",
    SourceKind(
        _tfds,
        _locate_tfds,
        {"name": "give the name of the TFDS data set, such as imagenet2012"},
        holds_files=True,
    ),
)
SOURCES.register("mixture", SourceKind(_mixture, _locate_mixture))
