"""Small files that are replaced whole, so that a reader sees the old text or the new; and the
user's home and cache."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from can_jax.utils.errors import UserError, one_line

LARGEST_JSON = 2**28  # bytes


def user_cache() -> Path | None:
    """Return the folder in the user's cache of what saves time at the next start.

    None without a home, as in a container whose user has no name. It need not exist.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or expand_home("~/.cache", must=False)
    return Path(cache) / "can_jax" if os.path.isabs(cache) else None


def expand_home(path: str, must: bool = True) -> str:
    """Replace a leading ``~`` or ``~user`` of a path by that home; shells expand few of them.

    Args:
        path: of a file or folder, or a URL.
        must: refuse what cannot be expanded, otherwise return it as it is.

    Raises:
        UserError: there is no such home.
    """
    if not path.startswith("~"):
        return path
    user = path.split("/")[0]
    expanded = os.path.expanduser(path)
    if user == "~" and os.environ.get("HOME") == "":  # "~/x" would be "/x"
        expanded = path
    if os.path.isabs(expanded):
        return expanded
    if not must:
        return path
    missing = "HOME is not set" if user == "~" else f"there is no user {user[1:]!r}"
    raise UserError(f"{path}: {missing}; write ./{path} for a file or folder of that name")


def read_json(place: epath.Path, of: type | None = dict) -> Any:
    """Read a JSON file.

    Args:
        place: The file.
        of: The type of its content, or None for any.

    Raises:
        UserError: It cannot be read, or holds something else.
    """
    try:
        if place.stat().length > LARGEST_JSON:
            raise UserError(f"it is larger than {LARGEST_JSON} bytes")
        content = json.loads(place.read_text())
    except (UserError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{place} cannot be read: {one_line(error)}") from error
    if of is not None and not isinstance(content, of):
        raise UserError(f"{place} holds a {type(content).__name__}, not a {of.__name__}")
    return content


def json_lines(path: epath.Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield each line of a file with the JSON object in it; nothing if there is no such file.

    The object is None for a line that a kill cut off, or that was damaged.
    """
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:  # of bytes that are no text, too
            record = None
        yield line, record if isinstance(record, dict) else None


def replace_text(path: epath.Path, text: str) -> None:
    """Write a text file in one move. Where there is no room for it, the old one stays.

    Raises:
        OSError: It cannot be written.
    """
    replace_bytes(path, text.encode())


def replace_bytes(path: epath.Path, content: bytes) -> None:
    """Write a file in one move. Where there is no room for it, the old one stays.

    Raises:
        OSError: It cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
