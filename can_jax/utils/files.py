"""Atomic replacement of small files, JSON readers, and the user's home and cache folders."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from etils import epath

from can_jax.utils.errors import UserError, one_line

PathT = TypeVar("PathT", epath.Path, Path)
# The schemes of supported URLs.
BUCKETS = ("gs", "s3", "az")
STORES = (*BUCKETS, "hf")
WEB = ("http", "https")  # servers that cannot list their files
LARGEST_JSON = 2**28  # the maximum bytes of a JSON file


def user_cache() -> Path | None:
    """Return this package's folder in the user's cache, such as ``~/.cache/can_jax``.

    Returns:
        The folder, which may not exist yet; None if the user has no home directory.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or expand_home("~/.cache", must=False)
    return Path(cache) / "can_jax" if os.path.isabs(cache) else None


def expand_home(path: str, must: bool = True) -> str:
    """Replace a leading ``~`` or ``~user`` of a path by the home directory of the user.

    Shells do not expand the ``~`` of an option such as ``--config.data.path=~/x``.

    Args:
        path: The path of a file or folder, or a URL.
        must: Whether to raise an error if the home directory is unknown, instead of returning the
            path unchanged.

    Raises:
        UserError: The home directory is unknown.
    """
    if not path.startswith("~"):
        return path
    user = path.split("/")[0]
    expanded = os.path.expanduser(path)
    if user == "~" and os.environ.get("HOME") == "":  # otherwise "~/x" becomes "/x"
        expanded = path
    if os.path.isabs(expanded):
        return expanded
    if not must:
        return path
    missing = "HOME is not set" if user == "~" else f"there is no user {user[1:]!r}"
    raise UserError(f"{path}: {missing}; write ./{path} for a file or folder of that name")


def checked_path(path: "str | os.PathLike[str]", web: bool = False) -> str:
    """Return a path as text, with a leading ``~`` expanded.

    Args:
        path: The path of a file or folder, or a URL.
        web: Whether to allow URLs of web servers, as for data sets but not for run directories.

    Raises:
        UserError: The path is empty or has a null character, the scheme of the URL is not
            supported, or the home directory is unknown.
    """
    text = expand_home(os.fspath(path))
    if not text or "\0" in text:
        raise UserError(f"{text!r} is not a path: give the path of a file or folder, or a URL")
    scheme, is_url, _ = text.partition("://")
    supported = (*STORES, *WEB) if web else STORES
    if is_url and scheme not in supported:
        known = ", ".join(f"{name}://" for name in supported)
        raise UserError(
            f"{text}: {scheme}:// is not supported; supported are {known}. Mount the store, or "
            "copy its files"
        )
    return text


def check_directory(path: "str | os.PathLike[str]", option: str = "") -> None:
    """Check that a local directory is writable, or can be created with its parents; create nothing.
    URLs are not checked.

    Args:
        path: The path of the directory.
        option: The option that sets the path, such as ``--workdir=``, for messages.

    Raises:
        UserError: The path or one of its parents is a file, or permission is denied.
    """
    text = os.fspath(path)
    if "://" in text:
        return
    if os.path.lexists(text) and not os.path.isdir(text):
        raise UserError(f"{option}{text} is a file: give the path of a folder")
    _check_existing(Path(text), f"{option}{text}")


def check_file(
    path: "str | os.PathLike[str]", option: str = "", *, create_parents: bool = True
) -> None:
    """Check that a local file can be created or replaced; change nothing. URLs are not checked.

    Args:
        path: The path of the file.
        option: The option that sets the path, such as ``--output=``, for messages.
        create_parents: Whether the writer of the file creates missing parent directories.

    Raises:
        UserError: The path is a directory, a parent is missing or is a file, or permission is
            denied.
    """
    text = os.fspath(path)
    if "://" in text:
        return
    if os.path.isdir(text):
        raise UserError(f"{option}{text} is a folder: give the path of a file")
    parent = Path(text).parent
    if not (create_parents or os.path.lexists(parent)):
        raise UserError(f"{option}{text} cannot be written: there is no folder {parent}")
    _check_existing(parent, f"{option}{text}")


def _check_existing(folder: Path, subject: str) -> None:
    """Check that a folder, or its nearest existing parent, is a folder in which files can be
    created."""
    existing = next((p for p in (folder, *folder.parents) if os.path.lexists(p)), Path())
    if not os.path.isdir(existing):
        raise UserError(f"{subject} cannot be written: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{subject} cannot be written: Permission denied for {existing}")


def read_json(path: epath.Path, of: type | None = dict) -> Any:
    """Return the content of a JSON file.

    Args:
        path: The path of the file, local or a URL.
        of: The required type of the content; None to allow any type.

    Raises:
        UserError: The file cannot be read, is larger than `LARGEST_JSON` bytes, is not valid JSON,
            or has content of another type than ``of``.
    """
    try:
        if path.stat().length > LARGEST_JSON:
            raise UserError(f"the file is larger than {LARGEST_JSON} bytes")
        content = json.loads(path.read_text())
    except (UserError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    if of is not None and not isinstance(content, of):
        raise UserError(f"{path} holds a {type(content).__name__}, not a {of.__name__}")
    return content


def json_lines(path: epath.Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield each line of a JSON Lines file, and the JSON object in the line.

    The object is None if the line is truncated or damaged. A missing file has no lines.
    """
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:  # also raised for bytes that are not text
            record = None
        yield line, record if isinstance(record, dict) else None


@contextlib.contextmanager
def replacing(path: PathT, suffix: str = ".tmp") -> Iterator[PathT]:
    """Replace a file atomically by a temporary file that the body of the context writes.

    If the body or the renaming fails, the old file remains and the temporary one is removed.

    Args:
        path: The path of the file to replace, local or a URL.
        suffix: The suffix of the temporary file's name. Processes that may write the same file at
            the same time need different suffixes.

    Yields:
        The path of the temporary file, in the folder of ``path``.

    Raises:
        OSError: The temporary file cannot be renamed.
    """
    temporary = path.with_name(f"{path.name}{suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def replace_text(path: epath.Path | Path, text: str) -> None:
    """Write a text file atomically. If the write fails, the old file remains unchanged.

    Raises:
        OSError: The file cannot be written.
    """
    replace_bytes(path, text.encode())


def replace_bytes(path: epath.Path | Path, content: bytes) -> None:
    """Write bytes to a file atomically. If the write fails, the old file remains unchanged.

    Raises:
        OSError: The file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def distinct_names(paths: Sequence[str]) -> list[str]:
    """Return the shortest ends of paths, such as ``run/evaluation``, that differ from one another.

    If two paths are equal, all paths are returned unchanged.
    """
    parts = [path.rstrip("/").split("/") for path in paths]
    for length in range(1, max(map(len, parts), default=0)):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)
