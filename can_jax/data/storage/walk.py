"""A walk through a folder's subfolders that follows symbolic links, and ends even if they form
cycles."""

import functools
import os
from collections.abc import Iterator
from typing import NamedTuple

from absl import logging

from can_jax.data.storage.reading import patiently, stop_if_storage_fails
from can_jax.data.storage.splits import shown, some

NESTED_LINKS = 5  # links followed on a path; nested links multiply the paths to a folder


class _Folder(NamedTuple):
    """The visible content of one folder: the names of its files, and a dict of subfolders and links
    to folders by name."""

    files: list[str]
    folders: dict[str, "_Subfolder"]


class _Subfolder(NamedTuple):
    """A directory entry that leads to a folder: the real path of the folder, and whether the entry
    is a symbolic link."""

    real: str
    link: bool


def walk_local(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the root and each visible folder below it, each with the names of its visible files.

    Symbolic links to folders are followed, but at most `NESTED_LINKS` links on one path. Folders
    behind more than `NESTED_LINKS` links, and folders that cannot be read, are logged and left out.

    A link that is part of a cycle is followed only if no other path has reached the link's target.
    A link that is part of a cycle does not count as a nested link. A link to a folder that contains
    the link, directly or at any depth, is not followed.

    Raises:
        UserError: The file system reports an I/O error, even after retries.
    """
    start = os.path.realpath(root)
    contents, unreadable = _scan(start)
    if unreadable:
        logging.warning(
            "%s: %d folders cannot be read and are left out: %s",
            shown(root), len(unreadable), some(unreadable),
        )  # fmt: skip
    component = _components(start, contents)
    visited: set[str] = set()
    too_deep: list[tuple[str, str]] = []
    later = [(root, start)]
    for path, real in later:  # grows while it is walked
        if real in visited:
            continue
        todo = [(path, real, 0)]
        while todo:
            path, real, links = todo.pop()
            visited.add(real)
            yield path, contents[real].files
            for name, folder in contents[real].folders.items():
                inner = os.path.join(path, name)
                if folder.link and component[folder.real] == component[real]:
                    later.append((inner, folder.real))
                elif links + folder.link <= NESTED_LINKS:
                    todo.append((inner, folder.real, links + folder.link))
                else:
                    too_deep.append((inner, folder.real))
    if left_out := [inner for inner, real in too_deep if real not in visited]:
        logging.warning(
            "%s: %d folders behind more than %d nested symbolic links are left out: %s",
            shown(root), len(left_out), NESTED_LINKS, some(left_out),
        )  # fmt: skip


def _scan(start: str) -> tuple[dict[str, _Folder], list[str]]:
    """Return a dict of all reachable folders, from real path to content, and a list of the folders
    that cannot be read.

    Args:
        start: The real path of the root folder.

    Raises:
        UserError: The file system reports an I/O error, even after retries.
    """
    contents: dict[str, _Folder] = {}
    unreadable: list[str] = []
    todo = [start]
    while todo:
        if (real := todo.pop()) in contents:
            continue
        folder = contents[real] = _Folder([], {})
        try:
            visible = patiently(functools.partial(_visible, real))
        except OSError as error:
            stop_if_storage_fails(real, error)
            unreadable.append(f"{real}: {error.strerror}")
            continue
        for entry in visible:
            if not is_folder_entry(entry):
                folder.files.append(entry.name)
                continue
            link = entry.is_symlink()
            target = os.path.realpath(entry.path) if link else entry.path
            if link and f"{real}/".startswith(f"{target.rstrip('/')}/"):
                continue  # the link leads to this folder or to one above it
            folder.folders[entry.name] = _Subfolder(target, link)
            todo.append(target)
    return contents, unreadable


def _visible(folder: str) -> list[os.DirEntry]:
    """Return the entries of a folder whose names do not start with a dot, sorted by name."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)


def is_folder_entry(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder or a symbolic link to one."""
    try:
        return entry.is_dir()
    except OSError:  # the target of the link is not accessible
        return False


def _components(start: str, contents: dict[str, _Folder]) -> dict[str, int]:
    """Return a number for each folder; folders that can be reached from each other have the same
    number.

    Each number denotes a strongly connected component of the graph of folders. Source of the
    algorithm: Tarjan, Depth-First Search and Linear Graph Algorithms, 1972.
    """
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    component: dict[str, int] = {}
    stack: list[str] = []
    path: list[tuple[str, Iterator[_Subfolder]]] = []

    def enter(real: str) -> None:
        order[real] = lowest[real] = len(order)
        stack.append(real)
        path.append((real, iter(contents[real].folders.values())))

    enter(start)
    while path:
        real, folders = path[-1]
        for folder in folders:
            if folder.real not in order:
                enter(folder.real)
                break
            if folder.real not in component:
                lowest[real] = min(lowest[real], order[folder.real])
        else:
            path.pop()
            if path:
                above = path[-1][0]
                lowest[above] = min(lowest[above], lowest[real])
            if lowest[real] == order[real]:
                while True:
                    member = stack.pop()
                    component[member] = order[real]
                    if member == real:
                        break
    return component
