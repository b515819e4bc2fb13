"""Checksums of a checkpoint's files: written before it gets its name, verified before a restore."""

import errno
import json
import zlib

from etils import epath

from can_jax.utils.errors import UserError, one_line, reason_of

NAME = "seal.json"  # sizes and checksums of the files, and the shapes of the arrays
WRITTEN_LATER = ("commit_success.txt", "_CHECKPOINT_METADATA")  # by Orbax, and not needed
CHUNK = 2**24  # bytes read at a time
DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)  # errors of files that are not there


def write_checksums(folder: epath.Path, shapes: dict[str, list[int]]) -> None:
    """Write the checksums of a checkpoint's files, and the shapes of its arrays by path."""
    files = {name: list(_size_and_sum(folder / name)) for name in _files(folder)}
    (folder / NAME).write_text(json.dumps({"files": files, "shapes": shapes}))


def saved_shapes(folder: epath.Path) -> dict[str, list[int]] | None:
    """Return the shapes of a checkpoint's arrays by path, or None where they are not recorded."""
    try:
        shapes = json.loads((folder / NAME).read_text()).get("shapes")
    except (OSError, ValueError, AttributeError):
        return None
    return shapes if isinstance(shapes, dict) else None


def find_damage(folder: epath.Path) -> str | None:
    """Compare a checkpoint's files with their checksums.

    Returns:
        What is damaged, or None for a valid checkpoint. One without checksums is damaged, since
        they are the last that a save writes.

    Raises:
        UserError: A file cannot be read now, as without permission or while a disk fails. That
            says nothing about its content.
    """
    try:
        return _find_damage(folder)
    except ValueError as error:
        return f"{NAME} cannot be parsed: {one_line(error)}"
    except OSError as error:
        if error.errno in DAMAGE:
            return one_line(error)
        reason = reason_of(error)
        raise UserError(
            f"checkpoint {folder} cannot be read: {reason}. Nothing was changed: run the same "
            "command once its files can be read"
        ) from error


def _find_damage(folder: epath.Path) -> str | None:
    try:
        content = json.loads((folder / NAME).read_bytes())
    except FileNotFoundError:
        return f"{NAME} is missing: it was not saved as a whole"
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        return f"{NAME} lists no files"
    for name, entry in files.items():
        if not isinstance(entry, list) or len(entry) != 2:
            return f"{NAME} holds no size and checksum of {name}"
        size, checksum = entry
        try:
            found = _size_and_sum(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        if found[0] != size:
            return f"{name} has {found[0]} bytes of {size}"
        if found[1] != checksum:
            return f"{name} is not what was written"
    return None


def _files(folder: epath.Path) -> list[str]:
    """Return the names of the files below a folder that a checkpoint needs."""
    found = []
    for path in folder.iterdir():
        if path.is_dir():
            found += [f"{path.name}/{name}" for name in _files(path)]
        elif path.name not in WRITTEN_LATER:
            found.append(path.name)
    return sorted(found)


def _size_and_sum(path: epath.Path) -> tuple[int, int | None]:
    """Return the bytes of a file and their CRC; of a file in a bucket, which keeps its own, the
    size only."""
    if "://" in str(path):
        return path.stat().length, None
    size = crc = 0  # counted here: epath's `stat` fails where the owner has no name
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            size, crc = size + len(part), zlib.crc32(part, crc)
    return size, crc
