"""Folders below a folder, through links, each real one once where links lead in circles."""

import os
from collections.abc import Iterator

from absl import logging

from can_jax.data.splits import shown, some

NESTED_LINKS = 5  # a way through more of them is taken for a circle


class _Folder:
    """A folder on the way of a walk.

    Attributes:
        path: By which it was reached.
        real: Its path without links.
        parent: The folder above it; None for the root.
        link: Whether it was reached by a link.
        circle: Whether a link below it leads to a folder above it.
    """

    def __init__(self, path: str, real: str, parent: "_Folder | None", link: bool):
        self.path, self.real, self.parent, self.link = path, real, parent, link
        self.circle = False
        self.files: list[str] = []

    def way(self) -> "Iterator[_Folder]":
        """Yield this folder and those above it."""
        folder: _Folder | None = self
        while folder is not None:
            yield folder
            folder = folder.parent


def walk_local(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each visible folder, the root too, with the names of its visible files.

    Links to folders are followed. A folder that cannot be read is logged.
    """
    found: list[_Folder] = []
    unreadable: list[str] = []
    todo = [_Folder(root, os.path.realpath(root), None, False)]
    while todo:
        folder = todo.pop()
        found.append(folder)
        try:
            entries = sorted(os.scandir(folder.path), key=lambda entry: entry.name)
        except OSError as error:
            unreadable.append(f"{folder.path}: {error.strerror}")
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                folder.files.append(entry.name)
                continue
            path = os.path.join(folder.path, entry.name)
            link = entry.is_symlink()
            real = os.path.realpath(path) if link else os.path.join(folder.real, entry.name)
            if link and _closes_circle(folder, real):
                continue
            todo.append(_Folder(path, real, folder, link))
    if unreadable:
        logging.warning(
            "%s: %d folders below it cannot be read and are left out: %s",
            shown(root), len(unreadable), some(unreadable),
        )  # fmt: skip
    straight = {f.real for f in found if not any(above.circle for above in f.way())}
    for folder in found:
        if folder.real not in straight or not any(above.circle for above in folder.way()):
            yield folder.path, folder.files


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link whose target cannot be looked at
        return False


def _closes_circle(folder: _Folder, real: str) -> bool:
    """Return whether a link leads to a folder on the way to it; mark the links in between."""
    way = list(folder.way())
    for number, above in enumerate(way, 0 if sum(f.link for f in way) < NESTED_LINKS else len(way)):
        if f"{above.real}/".startswith(f"{real}/") or number >= len(way):
            for between in way[:number]:
                between.circle = between.circle or between.link
            return True
    return False
