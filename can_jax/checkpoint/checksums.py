"""Checksums that detect incomplete or damaged checkpoints."""

import errno
import json
import zlib

from etils import epath

from can_jax.utils.errors import UserError, one_line, reason_of

NAME = "seal.json"  # sizes and checksums of the files, and the shapes of the arrays
# Orbax writes these files after the checksums; a restore does not need them.
WRITTEN_LATER = ("commit_success.txt", "_CHECKPOINT_METADATA")
CHUNK = 2**24  # bytes read at a time
DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)  # a path is missing or of the wrong type


def write_checksums(folder: epath.Path, shapes: dict[str, list[int]]) -> None:
    """Write the sizes and checksums of a checkpoint's files, and the shapes of its arrays."""
    files = {name: list(_size_and_sum(folder / name)) for name in _files(folder)}
    (folder / NAME).write_text(json.dumps({"files": files, "shapes": shapes}))


def saved_shapes(folder: epath.Path) -> dict[str, list[int]] | None:
    """Return a dict from array path to shape, or None if the checkpoint stores no shapes."""
    try:
        shapes = json.loads((folder / NAME).read_text()).get("shapes")
    except (OSError, ValueError, AttributeError):
        return None
    return shapes if isinstance(shapes, dict) else None


def find_damage(folder: epath.Path) -> str | None:
    """Verify the files of a checkpoint against their checksums.

    Returns:
        A description of the damage, or None for a valid checkpoint. A checkpoint without checksums
        is reported as damaged, since an interrupted save writes no checksums.

    Raises:
        UserError: The checkpoint cannot be verified because a file cannot be read, for example for
            lack of permission.
    """
    try:
        return _find_damage(folder)
    except ValueError as error:
        return f"{NAME} cannot be parsed: {one_line(error)}"
    except OSError as error:
        if error.errno in DAMAGE:
            return one_line(error)
        raise UserError(
            f"checkpoint {folder} cannot be read: {reason_of(error)}. Nothing was changed; re-run "
            "the command once the checkpoint can be read"
        ) from error


def _find_damage(folder: epath.Path) -> str | None:
    try:
        content = json.loads((folder / NAME).read_bytes())
    except FileNotFoundError:
        return f"{NAME} is missing: the save was not completed"
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        return f"{NAME} lists no files"
    for name, entry in files.items():
        if not isinstance(entry, list) or len(entry) != 2:
            return f"{NAME} holds no size and checksum for {name}"
        size, checksum = entry
        try:
            actual = _size_and_sum(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        if actual[0] != size:
            return f"{name} has {actual[0]} bytes instead of {size}"
        if actual[1] != checksum:
            return f"{name} does not match its checksum"
    return None


def _files(folder: epath.Path) -> list[str]:
    """Return the relative paths of a checkpoint's files, except files that are written after the
    checksums."""
    names = []
    for path in folder.iterdir():
        if path.is_dir():
            names += [f"{path.name}/{name}" for name in _files(path)]
        elif path.name not in WRITTEN_LATER:
            names.append(path.name)
    return sorted(names)


def _size_and_sum(path: epath.Path) -> tuple[int, int | None]:
    """Return the size in bytes and the CRC-32 of a file.

    The CRC-32 is None for a file in a bucket, since object stores verify checksums themselves.
    """
    if "://" in str(path):
        return path.stat().length, None
    # The bytes are counted, since `epath.Path.stat` fails if the file's owner has no user name.
    size = crc = 0
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            size, crc = size + len(part), zlib.crc32(part, crc)
    return size, crc
