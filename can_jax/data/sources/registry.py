"""The registry that opens the source named by `data.source` in a configuration."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from can_jax.data.sources.arrays import open_arrays, shards_of_split
from can_jax.data.sources.base import Source
from can_jax.data.sources.folder import images_of_split, open_folder, split_folder
from can_jax.data.sources.mixture import MixtureSource
from can_jax.data.sources.shards import locate_shards, open_tfrecord, open_webdataset
from can_jax.data.sources.synthetic_shapes import open_shapes
from can_jax.data.sources.tfds import locate_tfds, open_tfds
from can_jax.data.storage.splits import SPELLINGS, AmbiguousSplitError
from can_jax.utils.errors import UserError


def open_source(data: ConfigDict, split: str) -> Source:
    """Open the source that a checked config block names.

    Args:
        data: The config block.
        split: The name of the split.

    Raises:
        UserError: The data does not exist, or has no example of the split.
    """
    source = OPENERS[data.source](data, split)
    if not source.examples:
        raise UserError(f"config.data.path={data.path} holds no example of the split {split!r}")
    return source


def available_splits(data: ConfigDict, problems: dict[str, str] | None = None) -> tuple[str, ...]:
    """Return which of the splits `train`, `val` and `test` a checked config block has.

    Each can be opened by this name, even if the data spells it otherwise. A split with several
    spellings cannot be opened and is not returned.

    Args:
        data: The config block.
        problems: A dict that receives the error message of each ambiguous split.
    """
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # warnings about files of other splits are expected
    try:
        return tuple(s for s in SPELLINGS if _has(data, s, {} if problems is None else problems))
    finally:
        logging.set_verbosity(level)


def _has(data: ConfigDict, split: str, problems: dict[str, str]) -> bool:
    """Return whether the data has a split; an ambiguous split adds its message to ``problems``."""
    if data.source == "mixture":
        blocks = (block for block, _ in parts_of_mixture(data))
        return all(_has(block, block.split or split, problems) for block in blocks)
    try:
        LOCATORS[data.source](data, split)
    except AmbiguousSplitError as error:
        problems[split] = str(error)
        return False
    except UserError:
        return False
    return True


def _locate_arrays(data: ConfigDict, split: str) -> None:
    if not Path(data.path).exists():
        raise UserError(f"config.data.path={data.path} does not exist")
    shards_of_split(Path(data.path), split)


def _locate_folder(data: ConfigDict, split: str) -> None:
    if split != "train" and split_folder(data.path, split) is None:
        images_of_split(data.path, split)


def _locate_shards(data: ConfigDict, split: str) -> None:
    locate_shards(data.source, data.path, split, compressed=data.streaming)


def _locate_tfds(data: ConfigDict, split: str) -> None:
    locate_tfds(data.name, data.path, split)


LOCATORS: dict[str, Callable[[Any, str], None]] = {
    "shapes": lambda data, split: None,
    "arrays": _locate_arrays,
    "folder": _locate_folder,
    "tfrecord": _locate_shards,
    "webdataset": _locate_shards,
    "tfds": _locate_tfds,
}


def _shapes(data: ConfigDict, split: str) -> Source:
    return open_shapes(data.shapes_count, data.image_size, data.channels, split)


def _arrays(data: ConfigDict, split: str) -> Source:
    return open_arrays(data.path, split, data.channels)


def _folder(data: ConfigDict, split: str) -> Source:
    return open_folder(data.path, split, data.index, cache_bytes(data))


def _tfrecord(data: ConfigDict, split: str) -> Source:
    keys = data.image_key, data.label_key
    return open_tfrecord(data.path, split, data.index, cache_bytes(data), *keys)


def _webdataset(data: ConfigDict, split: str) -> Source:
    return open_webdataset(data.path, split, data.index, cache_bytes(data))


def _tfds(data: ConfigDict, split: str) -> Source:
    return open_tfds(data.name, data.path, split, data.index, cache_bytes(data))


def _mixture(data: ConfigDict, split: str) -> Source:
    blocks, weights = zip(*parts_of_mixture(data), strict=True)
    return MixtureSource([open_source(block, block.split or split) for block in blocks], weights)


def parts_of_mixture(data: ConfigDict) -> list[tuple[ConfigDict, float]]:
    """Return the config block and the weight of each part of a mixture.

    The block is that of the mixture, updated by the settings of the part. A part is a folder by
    default. Its ``split`` overrides the requested one.
    """
    parts = []
    defaults = {"source": "folder", "split": None, "mixture": (), "index": None}
    for changes in data.mixture:
        block = ConfigDict(data.to_dict() | defaults)
        block.update({key: value for key, value in changes.items() if key != "weight"})
        parts.append((block, float(changes.get("weight", 1.0))))
    return parts


def cache_bytes(data: ConfigDict) -> int:
    """Return the number of bytes of encoded images that a process may cache in memory."""
    return int(data.cache_gb * 1e9)


OPENERS: dict[str, Callable[[Any, str], Source]] = {
    "shapes": _shapes,
    "arrays": _arrays,
    "folder": _folder,
    "tfrecord": _tfrecord,
    "webdataset": _webdataset,
    "tfds": _tfds,
    "mixture": _mixture,
}
