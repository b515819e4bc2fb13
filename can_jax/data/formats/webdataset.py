"""The WebDataset layout, which determines how members of a tar form labeled examples."""

import collections
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from can_jax.data.formats.label_range import BEYOND, is_label
from can_jax.data.formats.scan import ScanResult, found
from can_jax.data.formats.tar import Members, compressed_problem, compression_of, open_tar
from can_jax.data.storage.files import IMAGE_NAME
from can_jax.data.storage.reading import open_file, open_random
from can_jax.data.storage.splits import shown

LABEL = 100  # the maximum bytes read of a `.cls` member; longer content counts as no integer
HOPS = 40  # the maximum number of links followed in a chain, as in Linux
PENDING = 2**28  # the maximum bytes of images of one key that wait in memory for their labels
# Words between key and suffix that mark an accompanying image, such as `a.seg.png` of `a.jpg`.
ROLES = frozenset(
    """
    seg segm segmentation mask masks label labels target gt semantic instance panoptic depth disp
    disparity normal normals flow edge edges canny sketch hint cond condition control pose heatmap
    saliency alpha matte trimap rgb nir left right input output orig original source thumb thumbnail
    preview small large lowres hires lr hr before after front back query
    """.split()  # noqa: SIM905
)
WORD = re.compile(r"[^\W\d_]+")
Unused = collections.Counter[str]  # the number of unused members of each kind
SECOND, LINKS = "extra images of the same example", "links whose target is not a file in the tar"
SPARSE, SPECIAL = "sparse members", "members that are not regular files"
LONE, LATE = ".cls members without an image", "labels too far behind their images in the tar"
SECOND_LABELS = "extra labels of the same image"
NO_INTEGER = "labels that are not integers and count as unknown"
SUCH_AS = ", such as "  # between a kind and an example of it


def scan_tar(path: str) -> ScanResult:
    """Return the byte range and label of each example's image in an uncompressed tar; the byte
    range of a link is that of its target."""
    file = open_random(path)
    if kind := compression_of(file.read(0, 8)):
        return found([], [], [], compressed_problem(kind))
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
        problem = f"is not a complete, uncompressed tar: {error}"
    ranges = [(image.offset_data, image.size) for image in images]
    if any(not image.isreg() for image in images):
        ranges = _resolve(path, file.size, images)
        unused[LINKS] += ranges.count((0, 0))
    kept = [row for row in zip(ranges, labels, strict=True) if row[0] != (0, 0)]
    offsets, lengths = ([byte_range[i] for byte_range, _ in kept] for i in (0, 1))
    return found(offsets, lengths, [label for _, label in kept], problem, +unused)


def _resolve(path: str, size: int, images: list[tarfile.TarInfo]) -> list[tuple[int, int]]:
    """Return the offset and length of each image. A link has the offset and length of its target,
    or (0, 0) if the target is not a file in the tar."""
    ranges: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    with open_file(path) as stream, open_tar(stream, "r:") as tar:
        for member in Members(tar, size):
            name = posixpath.normpath(member.name)
            links.pop(name, None)
            if member.isreg() and not member.issparse():
                ranges[name] = member.offset_data, member.size
            elif member.islnk() or member.issym():
                links[name] = _target(member)

    def range_of(image: tarfile.TarInfo) -> tuple[int, int]:
        if image.isreg():
            return image.offset_data, image.size
        name = _target(image)
        for _ in range(HOPS):
            if name not in links:
                break
            name = links[name]
        return ranges.get(name, (0, 0))

    return [range_of(image) for image in images]


def _target(link: tarfile.TarInfo) -> str:
    """Return the name of the tar member to which a link refers."""
    base = posixpath.dirname(link.name) if link.issym() else ""
    return posixpath.normpath(posixpath.join(base, link.linkname))


def examples_of_tar(
    members: Iterable[tarfile.TarInfo],
    tar: tarfile.TarFile,
    take: Callable[[tarfile.TarInfo], Any],
    unused: Unused,
) -> Iterator[tuple[Any, int]]:
    """Yield the result of ``take`` for the image of each example, and the example's label.

    Consecutive members whose names agree up to the first dot form a group, as in WebDataset. A
    group can contain several examples, such as `a.2019.jpg` and `a.2020.jpg`. An image that
    accompanies another one, such as the mask `a.seg.png` of `a.jpg`, is not an example.

    Args:
        members: The members of the tar, in order.
        tar: The open tar, seekable or streamed.
        take: A function that takes an image member, which may be a link, and returns a value for
            it, or None if the image is unusable. If the tar is streamed, ``take`` must read the
            content of the member before it returns.
        unused: The number of unused members of each kind; updated in place.
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
            group.add_label(name, content.read(LABEL) if content else b"")
        elif not IMAGE_NAME.search(name):
            unused["links" if link else _kind(name)] += 1
        elif group.takes(name):
            if (image := take(member)) is not None:
                group.add_image(name, image)
        else:
            count_named(unused, SECOND, shown(name))
        yield from group.overflow()
    yield from group.close()


class _Group:
    """Consecutive members of a tar whose names agree up to the first dot."""

    def __init__(self, folder: str, key: str, unused: Unused):
        self.folder, self.key = folder, key
        # (stem, image) of each example that waits for its label.
        self._images: collections.deque[tuple[str, Any]] = collections.deque()
        self._bytes = 0
        self._given: dict[str, int] = {}  # labels of the images that `overflow` yielded
        self._stems: dict[str, str] = {}  # name by stem
        self._labels: dict[str, int] = {}
        self._unused = unused

    def takes(self, name: str) -> bool:
        """Return whether an image is a new example, and if so, record its name. An image that
        accompanies another image of the group, such as a mask, is not an example; if it was stored
        first, it is dropped."""
        stem = posixpath.splitext(name)[0]
        if stem in self._stems:
            return False
        if self._follows_its_companions(stem):
            for companion in self._stems.values():
                count_named(self._unused, SECOND, shown(companion))
            self._stems.clear()
            self._images.clear()
            self._bytes = 0
        elif self._stems and self._accompanies(stem):
            return False
        self._stems[stem] = name
        return True

    def _middle(self, stem: str) -> str:
        """Return the part of a name between the key and the suffix."""
        return stem[len(self.key) + 1 :]

    def _follows_its_companions(self, stem: str) -> bool:
        """Return whether all earlier images of the group, such as masks, accompany an image."""
        middle = self._middle(stem)
        if not self._stems or self._given or middle.lower() in ROLES:
            return False
        earlier = map(self._middle, self._stems)  # lazy, since a tar can be one group
        if not middle:
            return all(map(WORD.fullmatch, earlier))
        return all(word.lower() in ROLES for word in earlier)

    def _accompanies(self, stem: str) -> bool:
        """Return whether an image, such as a mask, accompanies an earlier image of the group."""
        middle = self._middle(stem)
        if middle.lower() in ROLES:
            return True
        if self.key in self._stems:  # `0001.jpg` is there, so `0001.other.jpg` belongs to it
            return WORD.fullmatch(middle) is not None
        first = self._middle(next(iter(self._stems)))
        return not middle and WORD.fullmatch(first) is not None

    def add_label(self, name: str, content: bytes) -> None:
        """Record the label that a `.cls` member contains; -1 if the content is not an int32."""
        pattern = rb"\s*([+-]?\d+)(\.0*)?\s*"
        match = re.fullmatch(pattern, content) if len(content) < LABEL else None
        label = int(match[1]) if match else -1
        if not match:
            text = content[:20].decode(errors="backslashreplace")
            count_named(self._unused, NO_INTEGER, f"{text!r} in {shown(name)}")
        elif not is_label(label):
            self._unused[BEYOND] += 1
            label = -1
        stem = posixpath.splitext(name)[0]
        self._labels.pop(stem, None)
        self._labels[stem] = label

    def add_image(self, name: str, image: Any) -> None:
        """Record an example, given the value that ``take`` returned for its image; see
        `examples_of_tar`."""
        self._images.append((posixpath.splitext(name)[0], image))
        self._bytes += len(image) if isinstance(image, bytes) else 0

    def overflow(self) -> Iterator[tuple[Any, int]]:
        """Yield the oldest images and their labels while the group's images exceed `PENDING` bytes.
        If a different label for a yielded image is read later, that label counts as unused."""
        while self._bytes > PENDING:
            stem, image = self._images.popleft()
            self._bytes -= len(image)
            self._given[stem] = self._label_of(stem)
            yield image, self._given[stem]

    def _label_of(self, stem: str) -> int:
        """Return the label of an image, or -1 if the label is unknown.

        For `a.1.jpg`, the label in `a.1.cls` takes precedence over that in `a.cls`. If neither
        member exists, the only image of a group gets the label of the group's last `.cls` member.
        """
        label = self._labels.get(stem, self._labels.get(self.key))
        if label is None and len(self._stems) == 1:
            return next(reversed(self._labels.values()), -1)
        return -1 if label is None else label

    def close(self) -> Iterator[tuple[Any, int]]:
        """Yield the remaining images of the group with their labels, and count its unused
        labels."""
        yield from ((image, self._label_of(stem)) for stem, image in self._images)
        late = sum(self._label_of(stem) != label for stem, label in self._given.items())
        lone = len(self._labels.keys() - self._stems.keys() - {self.key})
        if not self._stems:
            lone = len(self._labels)
        elif len(self._stems) == 1:  # any label of the group applies to its only image
            self._unused[SECOND_LABELS] += max(0, len(self._labels) - 1)
            lone = 0
        self._unused.update({LATE: late, LONE: lone})
        for kind in (LATE, LONE, SECOND_LABELS):
            if not self._unused[kind]:
                del self._unused[kind]


def count_named(unused: Unused, kind: str, member: str) -> None:
    """Count a member of a kind whose name quotes the first such member."""
    known = next((other for other in unused if base_kind(other) == kind), None)
    unused[known or f"{kind}{SUCH_AS}{member}"] += 1


def _kind(name: str) -> str:
    """Return the lower-case suffix of a member's name, by which unused members are counted."""
    return posixpath.splitext(name)[1].lower() or "without a suffix"


def list_unused(unused: Unused) -> str:
    """Return a phrase that lists the kinds of unused members with their counts, the most frequent
    first."""
    firsts: dict[str, str] = {}
    total: Unused = collections.Counter()
    for kind, count in unused.items():
        firsts.setdefault(base_kind(kind), kind)
        total[base_kind(kind)] += count
    return ", ".join(f"{count} {firsts[kind]}" for kind, count in total.most_common())


def base_kind(kind: str) -> str:
    """Return the name of a kind of unused members without the member that may follow `SUCH_AS`."""
    return kind.split(SUCH_AS)[0]


def as_text(unused: Unused) -> np.ndarray:
    """Return the counts of unused members as an array of `kind=count` strings, which npz files can
    store."""
    return np.array([f"{kind}={count}" for kind, count in unused.items()], str)


def from_text(lines: Iterable[str]) -> Unused:
    """Return the total count of each kind, given `kind=count` strings as returned by `as_text`."""
    unused: Unused = collections.Counter()
    for line in lines:
        kind, count = str(line).rsplit("=", 1)
        unused[kind] += int(count)
    return unused
