"""Names, types and sizes of the files of a data set, on disks and in object stores."""

import itertools
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import Int

from can_jax.data.storage import remote
from can_jax.data.storage.reading import open_file, patiently, stop_if_storage_fails, unreadable
from can_jax.data.storage.remote import is_remote
from can_jax.data.storage.walk import is_folder_entry, walk_local

IMAGES = r"jpe?g|jpe|jfif|a?png|gif|bmp|dib|webp|tiff?|avif|mpo|jp2|ico|p[bgpn]m"
IMAGE_NAME = re.compile(rf"\.({IMAGES})$", re.IGNORECASE)
# The first bytes of files in these formats. AVIF and HEIC files can share the major brand `mif1`.
IMAGE_START = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{4}\0\0\0\0|RIFF.{4}WEBP|II[*+]\0|MM\0[*+]"
    rb"|.{4}ftyp(avif|avis|mif1(?=.{,48}avif)|jp2)|\0\0\0\x0cjP  |\xffO\xffQ|\0\0\x01\0"
    rb"|P[1-7][\s#]",
    re.DOTALL,
)
STAT_THREADS = 16
STAT_BLOCK = 256  # files per task of the thread pool that requests sizes
LISTING_SECONDS = 60.0  # the listing of a remote folder is cached for this time
Result = TypeVar("Result")


def size_of(path: str) -> int:
    """Return the size in bytes of a local or remote file.

    Read permission for the file is not needed.

    Raises:
        UserError: Reading the size fails with an I/O error, even after retries.
        OSError: The file does not exist, or access to its folder is denied.
    """
    try:
        if is_remote(path):
            return patiently(lambda: remote.size(path))
        return patiently(lambda: os.stat(path)).st_size
    except OSError as error:
        stop_if_storage_fails(path, error)
        raise


def shard_sizes(paths: Sequence[str]) -> Int[np.ndarray, " files"]:
    """Return the size in bytes of each file; -1 for a local file that does not exist or is not a
    regular file.

    The sizes of remote files in the same folder are taken from a single listing of this folder.

    Raises:
        UserError: Reading a size fails with an I/O error, even after retries.
        OSError: A remote file does not exist.
    """
    if paths and is_remote(paths[0]):
        sizes = _reachable(paths[0], lambda: remote.existing(paths))
        return np.array([sizes[p] if p in sizes else size_of(p) for p in paths], np.int64)
    return sizes_of("", paths)


def sizes_of(root: str, names: Sequence[str]) -> Int[np.ndarray, " files"]:
    """Return the size in bytes of each file; -1 for a file that does not exist or is not a regular
    file.

    Args:
        root: The path or URL of the folder to which ``names`` are relative.
        names: The paths of the files, relative to ``root``.

    Raises:
        UserError: Reading the size of a file fails with an I/O error, even after retries.
    """
    if is_remote(root):
        tree = _tree(root.rstrip("/"))
        paths = (os.path.join(root, name).rsplit("/", 1) for name in names)
        return np.array([tree.get(folder, {}).get(name, -1) for folder, name in paths], np.int64)

    def size(name: str) -> int:
        path = os.path.join(root, name)
        try:
            status = patiently(lambda: os.stat(path))
        except OSError as error:
            stop_if_storage_fails(path, error)
            return -1
        return status.st_size if stat.S_ISREG(status.st_mode) else -1

    with ThreadPoolExecutor(STAT_THREADS) as threads:  # a network file system has a long latency
        blocks = [names[i : i + STAT_BLOCK] for i in range(0, len(names), STAT_BLOCK)]
        sizes = threads.map(lambda block: [size(name) for name in block], blocks)
        return np.fromiter(itertools.chain.from_iterable(sizes), np.int64, len(names))


class Names:
    """A sequence of file names stored in two arrays, which can be memory-mapped and take less
    memory than strings.

    Args:
        text: The encoded names, concatenated without separators, uint8 (bytes,).
        ends: The index in ``text`` after the last byte of each name, integers (names,).
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray):
        self.text, self.ends = text, ends

    @staticmethod
    def of(names: list[str]) -> "Names":
        """Return the `Names` that represent a list of strings."""
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return Names(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.text[start : int(self.ends[index])].tobytes())


def find_images(root: str) -> tuple[list[str], list[str]]:
    """Return the visible files below a folder, divided into images and other files.

    A file counts as an image by its suffix or, without a suffix, by its first bytes.

    Returns:
        The list of images and the list of other files, each as sorted paths relative to ``root``.
    """
    images: list[str] = []
    others: list[str] = []
    for folder, files in walk(root):
        inside = os.path.relpath(folder, root)
        for name in files:
            kind = images if is_image(folder, name) else others
            kind.append(os.path.normpath(os.path.join(inside, name)))
    return sorted(images), sorted(others)


def holds_image(folder: str, most: int | None = None) -> bool:
    """Return whether a folder contains a visible image at any depth, without following links to
    folders; the search ends at the first image, or after ``most`` files."""
    walked = walk(folder) if is_remote(folder) else _visible(folder)
    names = ((path, name) for path, files in walked for name in files)
    return any(itertools.starmap(is_image, itertools.islice(names, most)))


def _visible(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yield a local folder and each visible folder below it, each with the names of its visible
    files."""
    for path, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield path, [name for name in files if not name.startswith(".")]


def is_image(folder: str, name: str) -> bool:
    """Return whether a file is an image, by its suffix or, without a suffix, by its first bytes."""
    if "." in name:
        return bool(IMAGE_NAME.search(name))
    path = os.path.join(folder, name)
    try:
        # Opening a pipe would block until a writer opens it.
        if not is_remote(path) and not os.path.isfile(path):
            return False
        with open_file(path) as file:
            return bool(IMAGE_START.match(file.read(64)))
    except OSError:
        return False


def walk(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the root and each folder below it, each with the names of its visible files."""
    if is_remote(root):
        yield from ((folder, list(sizes)) for folder, sizes in _tree(root.rstrip("/")).items())
        return
    yield from walk_local(root)


_TREES: dict[str, tuple[float, dict[str, dict[str, int]]]] = {}


def _tree(root: str) -> dict[str, dict[str, int]]:
    """Return the sizes in bytes of the visible files below a remote folder, as nested dicts by
    folder URL and file name.

    Opening a data set lists its folders many times. Listing millions of objects can take minutes,
    so the listing of a folder is cached for `LISTING_SECONDS`.

    Args:
        root: The URL of the remote folder, without a trailing slash.
    """
    for cached, (until, tree) in list(_TREES.items()):
        if time.monotonic() > until:
            del _TREES[cached]
        elif f"{root}/".startswith(f"{cached}/"):
            return {
                folder: sizes
                for folder, sizes in tree.items()
                if f"{folder}/".startswith(f"{root}/")
            }
    tree = {}
    for entry in _reachable(root, lambda: list(remote.below(root))):
        folder, name = entry.url.rsplit("/", 1)
        if not name.startswith(".") and "/." not in folder[len(root) :]:
            tree.setdefault(folder, {})[name] = entry.size
    tree = dict(sorted(tree.items()))
    _TREES[root] = time.monotonic() + LISTING_SECONDS, tree
    return tree


def folders_in(path: str) -> list[str]:
    """Return the sorted names of the visible subfolders of a folder."""
    if is_remote(path):
        start = len(path.rstrip("/")) + 1
        inner = (folder[start:] for folder in _tree(path.rstrip("/")))
        return sorted({name.split("/")[0] for name in inner} - {""})
    with os.scandir(path) as entries:  # avoids a system call for each of millions of files
        return sorted(e.name for e in entries if is_folder_entry(e) and e.name[0] != ".")


def folders_of(path: str) -> set[str]:
    """Return the names of all subfolders of a remote folder, including hidden ones.

    The result is empty for a folder on a web server, because web servers do not list their files.
    """
    return set(_reachable(path, lambda: remote.inside(path))[0]) if remote.can_list(path) else set()


def files_in(path: str) -> list[str]:
    """Return the names of the visible files in a folder and, if the folder is local, the names of
    its subfolders."""
    if is_remote(path):
        return list(_tree(path.rstrip("/")).get(path.rstrip("/"), ()))
    return [name for name in os.listdir(path) if not name.startswith(".")]


def is_folder(path: str) -> bool:
    """Return whether a local path or URL is a folder."""
    if is_remote(path):
        return _reachable(path, lambda: remote.is_folder(path))
    return os.path.isdir(path)


def exists(path: str) -> bool:
    """Return whether a local path or URL exists."""
    if is_remote(path):
        return _reachable(path, lambda: remote.exists(path))
    return os.path.exists(path)


def listed(path: str) -> list[str]:
    """Return the names of all files and subfolders in a folder, including hidden ones."""
    if is_remote(path):
        folders, files = _reachable(path, lambda: remote.inside(path))
        return [*folders, *(entry.url.rsplit("/", 1)[-1] for entry in files)]
    return os.listdir(path)


def existing(paths: Sequence[str]) -> set[str]:
    """Return the set of those ``paths`` that exist. Several paths in the same folder are checked
    with a single listing of the folder."""
    if paths and is_remote(paths[0]):
        return set(_reachable(paths[0], lambda: remote.existing(paths)))
    names: dict[str, set[str]] = {}
    for folder in {os.path.dirname(path) for path in paths}:
        names[folder] = set(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else set()
    return {path for path in paths if os.path.basename(path) in names[os.path.dirname(path)]}


def _reachable(url: str, call: Callable[[], Result]) -> Result:
    """Return the result of a request to an object store or web server. The request is repeated
    after transient errors.

    Raises:
        UserError: The server refuses the request, or cannot be reached.
    """
    try:
        return patiently(call)
    except OSError as error:
        raise unreadable(url, error) from error
