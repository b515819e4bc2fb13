"""Detection of the kind of data at a path, for commands that are run without `data.source`."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from can_jax.data.storage.files import IMAGE_NAME, exists, is_folder, is_image, walk
from can_jax.data.storage.find import WILD, matches
from can_jax.data.storage.remote import is_remote
from can_jax.data.storage.shard_names import is_any_shard, is_shard
from can_jax.data.storage.splits import shown
from can_jax.data.storage.unsupported import remedy
from can_jax.utils.errors import UserError

MOST = 20_000  # the maximum number of files whose names are examined
SAMPLE = 64  # the maximum number of images whose paths are returned


class Kind(NamedTuple):
    """The result of detecting the kind of data at a path.

    Attributes:
        source: The value of ``data.source`` that reads the data.
        images: The number of image files among the first `MOST` files of a folder; 0 for a single
            file or a pattern.
        files: The paths of up to `SAMPLE` image files.
    """

    source: str
    images: int = 0
    files: tuple[str, ...] = ()


def kind_of(path: str) -> Kind:
    """Return the kind of data at a path, which can be a folder, a file, or a pattern of shards.

    If a folder contains files of several kinds, the most frequent kind is returned. An archive
    among many images, for example, is ignored. If there are as many images as files of another
    kind, the other kind is returned.

    Raises:
        UserError: The path does not exist, is a single image or a pattern of images, or contains no
            data of a supported kind.
    """
    if "::" in path or "{split}" in path or not is_folder(path):
        return _of_files(path)
    counts: Counter[str] = Counter()
    others: list[str] = []
    images: list[str] = []
    for file in _files_below(path):
        folder, name = os.path.split(file)
        kind = _kind_of_name(name)
        if "." not in name and not is_remote(path) and is_image(folder, name):
            kind = "folder"
        counts[kind] += 1
        if kind == "folder":
            if len(images) < SAMPLE:
                images.append(file)
        elif not kind:
            others.append(name)
        if counts.total() >= MOST:
            break
    del counts[""]
    if not counts:
        reason = remedy(others)
        raise UserError(
            f"{shown(path)} holds no images, shards (.tar, .tfrecord) or arrays (.npz); "
            f"{reason or 'set --config.data.source for another layout, see docs/data.md'}"
        )
    source = max(counts, key=lambda kind: (counts[kind], kind != "folder"))
    return Kind(source, counts["folder"], tuple(images))


def _of_files(path: str) -> Kind:
    """Return the kind that the name of a file or pattern states. If the name states no kind, return
    the most frequent kind of the matching files. If no name reveals a kind, the files count as
    TFRecords.

    Raises:
        UserError: No file matches, the files have a known but unsupported format, or they are
            images.
    """
    first = path.split("::")[0]
    kind = _kind_of_name(os.path.basename(first))
    plain = "{" not in path and "::" not in path and not WILD.search(path)
    if plain and not exists(path):
        raise UserError(f"{shown(path)} does not exist")
    if not kind and "{split}" not in first:
        files = [path] if plain else matches(first)
        kinds = Counter(_kind_of_name(os.path.basename(file)) for file in files)
        del kinds[""]
        if kinds:
            kind = kinds.most_common(1)[0][0]
        elif reason := remedy(files[:1]):
            raise UserError(f"{shown(path)}: {reason}")
    if kind == "folder":
        raise UserError(f"{shown(path)} is an image: give the folder that contains the images")
    return Kind(kind or "tfrecord")


def _kind_of_name(name: str) -> str:
    """Return the data source that reads files with the given name, or ""."""
    if name.lower().endswith(".npz"):
        return "arrays"
    if IMAGE_NAME.search(name):
        return "folder"
    if is_any_shard(name, "tar"):
        return "webdataset"
    return "tfrecord" if is_shard(name, "tfrecord") else ""


def _files_below(path: str) -> Iterator[str]:
    """Yield the paths of the visible files below a folder; local subfolders are listed lazily."""
    if is_remote(path):
        yield from (f"{folder}/{name}" for folder, names in walk(path) for name in names)
        return
    seen: set[str] = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # links can form cycles
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(folder, n) for n in sorted(files) if not n.startswith("."))
