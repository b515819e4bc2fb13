"""Folders below a folder, through links, each real one once where links lead in circles."""

import functools
import os
from collections.abc import Iterator
from typing import NamedTuple

from absl import logging

from can_jax.data.storage.reading import patiently, stop_if_storage_fails
from can_jax.data.storage.splits import shown, some

NESTED_LINKS = 5  # links to links to …, which multiply the ways to a folder; more are not followed


class _Folder(NamedTuple):
    """What is in a real folder: the names of files, and the folders by name, behind links too."""

    files: list[str]
    folders: dict[str, "_Way"]


class _Way(NamedTuple):
    """A way to a folder: its path without links, and whether the last step is a link."""

    real: str
    link: bool


def walk_local(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each visible folder, the root too, with the names of its visible files.

    Links to folders are followed. A folder that cannot be read is logged. A link on a circle, by
    which one could return to the folder that the link is in, is followed where nothing else leads
    to its target. A link to the folder that it lies in, or to one above that, is not followed.
    """
    start = os.path.realpath(root)
    found, unreadable = _scan(start)
    if unreadable:
        logging.warning(
            "%s: %d folders below it cannot be read and are left out: %s",
            shown(root), len(unreadable), some(unreadable),
        )  # fmt: skip
    circle = _circles(start, found)
    visited: set[str] = set()
    later = [(root, start)]
    for path, real in later:  # grows while it is walked
        if real in visited:
            continue
        todo = [(path, real, 0)]
        while todo:
            path, real, links = todo.pop()
            visited.add(real)
            yield path, found[real].files
            for name, way in found[real].folders.items():
                inner = os.path.join(path, name)
                if way.link and circle[way.real] == circle[real]:
                    later.append((inner, way.real))
                elif links + way.link <= NESTED_LINKS:
                    todo.append((inner, way.real, links + way.link))


def _scan(start: str) -> tuple[dict[str, _Folder], list[str]]:
    """Return the content of every real folder that can be reached, and those that are unreadable.

    Args:
        start: The path of the first one, without links.
    """
    found: dict[str, _Folder] = {}
    unreadable: list[str] = []
    todo = [start]
    while todo:
        if (real := todo.pop()) in found:
            continue
        folder = found[real] = _Folder([], {})
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
                continue  # back to this folder, or to one that it lies in
            folder.folders[entry.name] = _Way(target, link)
            todo.append(target)
    return found, unreadable


def _visible(folder: str) -> list[os.DirEntry]:
    """Return the entries of a folder that are not hidden, by name."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)


def is_folder_entry(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link whose target cannot be looked at
        return False


def _circles(start: str, found: dict[str, _Folder]) -> dict[str, int]:
    """Return a number for each folder, the same for those that lead to each other.

    These are the strongly connected components of the folders, by Tarjan's algorithm.
    """
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    component: dict[str, int] = {}
    stack: list[str] = []
    path: list[tuple[str, Iterator[_Way]]] = []

    def enter(real: str) -> None:
        order[real] = lowest[real] = len(order)
        stack.append(real)
        path.append((real, iter(found[real].folders.values())))

    enter(start)
    while path:
        real, ways = path[-1]
        for way in ways:
            if way.real not in order:
                enter(way.real)
                break
            if way.real not in component:
                lowest[real] = min(lowest[real], order[way.real])
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
