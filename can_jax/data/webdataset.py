"""The layout of WebDataset: which members of a tar are an example, and which are not used."""

import collections
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from can_jax.data.files import IMAGE_NAME, RandomFile, open_file
from can_jax.data.label_range import BEYOND, is_label
from can_jax.data.scan import Found, found
from can_jax.data.tar import Members, compression_of, open_tar

HOPS = 40  # links that may lead to each other, as in Linux
PENDING = 256  # images of one key that wait for a label
# What a second image of an example is named, between its key and its suffix.
ROLES = frozenset(
    """
    seg segm segmentation mask masks label labels target gt semantic instance panoptic depth disp
    disparity normal normals flow edge edges canny sketch hint cond condition control pose heatmap
    saliency alpha matte trimap rgb nir left right input output orig original source thumb thumbnail
    preview small large lowres hires lr hr before after front back query
    """.split()  # noqa: SIM905
)
Unused = collections.Counter[str]  # members that are not used, by their kind
SECOND, LINKS = "second images of an example", "links that lead to no file in the tar"
SPARSE, SPECIAL = "sparse members", "members that are no files"


def scan_tar(path: str) -> Found:
    """Return every example of an uncompressed tar; links lead to the bytes of their targets."""
    file = RandomFile(path)
    if kind := compression_of(file.read(0, 8)):
        return found([], [], [], f"is compressed ({kind}): set config.data.streaming, or expand it")
    images: list[tarfile.TarInfo] = []
    labels: list[int] = []
    unused: Unused = collections.Counter()
    problem: str | None = None
    try:
        with open_file(path) as stream, open_tar(stream, "r:") as tar:
            members = Members(tar, file.size)
            for image, label in examples_of_tar(members, tar, lambda member: member, unused):
                images.append(image)
                labels.append(label)
            problem = members.problem
    except (tarfile.TarError, EOFError) as error:
        problem = f"is no whole uncompressed tar: {error}"
    places = [(image.offset_data, image.size) for image in images]
    if any(not image.isreg() for image in images):
        places = _resolve(path, file.size, images)
        unused[LINKS] += places.count((0, 0))
    kept = [row for row in zip(places, labels, strict=True) if row[0] != (0, 0)]
    offsets, lengths = ([place[i] for place, _ in kept] for i in (0, 1))
    return found(offsets, lengths, [label for _, label in kept], problem, +unused)


def _resolve(path: str, size: int, images: list[tarfile.TarInfo]) -> list[tuple[int, int]]:
    """Return offset and length of each image, or of the file that it links to; (0, 0) if none."""
    places: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    with open_file(path) as stream, open_tar(stream, "r:") as tar:
        for member in Members(tar, size):
            name = posixpath.normpath(member.name)
            links.pop(name, None)
            if member.isreg() and not member.issparse():
                places[name] = member.offset_data, member.size
            elif member.islnk() or member.issym():
                links[name] = _target(member)

    def place_of(image: tarfile.TarInfo) -> tuple[int, int]:
        if image.isreg():
            return image.offset_data, image.size
        name = _target(image)
        for _ in range(HOPS):
            if name not in links:
                break
            name = links[name]
        return places.get(name, (0, 0))

    return [place_of(image) for image in images]


def _target(link: tarfile.TarInfo) -> str:
    """Return the name of the member that a link leads to."""
    base = posixpath.dirname(link.name) if link.issym() else ""
    return posixpath.normpath(posixpath.join(base, link.linkname))


def examples_of_tar(
    members: Iterable[tarfile.TarInfo],
    tar: tarfile.TarFile,
    take: Callable[[tarfile.TarInfo], Any],
    unused: Unused,
) -> Iterator[tuple[Any, int]]:
    """Yield what is taken of the image of each example, and its label.

    Members that follow each other and share a name up to the first dot are one example, as in
    WebDataset, unless they are images of different names, such as `a.2019.jpg` and `a.2020.jpg`.

    Args:
        members: Of the tar, as they are read.
        tar: Open for reading, whether it can seek or not.
        take: Called with the member of an image, or a link to one, while the tar is at it. None is
            what cannot be used.
        unused: Counts the members that are not used.
    """
    group = _Group("", "", unused)
    for member in members:
        folder, name = posixpath.split(member.name)
        link = member.islnk() or member.issym()
        if member.isdir() or name.startswith("."):
            continue
        if not member.isreg() and not link:
            unused[SPECIAL] += 1
            continue
        if member.issparse():
            unused[SPARSE] += 1
            continue
        if (folder, name.split(".")[0]) != (group.folder, group.key):
            yield from group.close()
            group = _Group(folder, name.split(".")[0], unused)
        if name.lower().endswith(".cls") and not link:
            content = tar.extractfile(member)
            group.add_label(name, content.read() if content else b"")
        elif not IMAGE_NAME.search(name):
            unused["links" if link else _kind(name)] += 1
        elif group.takes(name):
            if (image := take(member)) is not None:
                group.images.append((posixpath.splitext(name)[0], image))
        else:
            unused[SECOND] += 1
        if len(group.images) > PENDING:
            yield from group.close()
    yield from group.close()


class _Group:
    """Members in a row whose names are the same up to the first dot."""

    def __init__(self, folder: str, key: str, unused: Unused):
        self.folder, self.key = folder, key
        self.images: list[tuple[str, Any]] = []  # with the name before the suffix
        self._stems: dict[str, None] = {}
        self._labels: dict[str, int] = {}
        self._unused = unused

    def takes(self, name: str) -> bool:
        """Return whether an image is an example, and not another image of an earlier one."""
        stem = posixpath.splitext(name)[0]
        if stem in self._stems or (self._stems and self._accompanies(stem)):
            return False
        self._stems[stem] = None
        return True

    def _accompanies(self, stem: str) -> bool:
        middle = stem[len(self.key) + 1 :]
        if middle.lower() in ROLES:
            return True
        if self.key in self._stems:  # `0001.jpg` is there, so `0001.other.jpg` belongs to it
            return re.fullmatch(r"[^\W\d_]+", middle) is not None
        first = next(iter(self._stems))[len(self.key) + 1 :]
        return not middle and re.fullmatch(r"[^\W\d_]+", first) is not None

    def add_label(self, name: str, content: bytes) -> None:
        """Note the number in a `.cls` member."""
        try:
            label = int(content)
        except ValueError:
            label = -1
        if not is_label(label):
            self._unused[BEYOND] += 1
            label = -1
        stem = posixpath.splitext(name)[0]
        self._labels.pop(stem, None)
        self._labels[stem] = label

    def close(self) -> Iterator[tuple[Any, int]]:
        """Yield the images with their labels: their own, or that of the key."""
        if len(self._stems) == 1:
            last = next(reversed(self._labels.values()), -1)
            yield from ((image, last) for _, image in self.images)
        else:
            shared = self._labels.get(self.key, -1)
            yield from ((image, self._labels.get(stem, shared)) for stem, image in self.images)
        if not self._stems and self._labels:
            self._unused[".cls without an image beside it"] += len(self._labels)
        self.images = []


def _kind(name: str) -> str:
    return posixpath.splitext(name)[1].lower() or "without a suffix"


def list_unused(unused: Unused) -> str:
    """Return the kinds of unused members with their numbers, the most frequent first."""
    return ", ".join(f"{count} {kind}" for kind, count in unused.most_common())


def as_text(unused: Unused) -> np.ndarray:
    """Return the counts as an array of `kind=count`, which can be stored."""
    return np.array([f"{kind}={count}" for kind, count in unused.items()], str)


def from_text(lines: Iterable[str]) -> Unused:
    """Add up the counts that `as_text` made."""
    unused: Unused = collections.Counter()
    for line in lines:
        kind, count = str(line).rsplit("=", 1)
        unused[kind] += int(count)
    return unused
