"""Local copies of folders in object stores. A remote index is copied so that its arrays can be
memory-mapped."""

import functools
import os
import shutil
import socket
import tempfile
from pathlib import Path

from absl import logging

from can_jax.data.storage import remote
from can_jax.data.storage.digest import digest_of_bytes
from can_jax.data.storage.reading import open_file, patiently, unreadable
from can_jax.data.storage.splits import shown
from can_jax.utils.errors import UserError, reason_of
from can_jax.utils.files import user_cache

COPIED = 2**22  # bytes copied at once


def work_folder(url: str, kind: str) -> Path:
    """Return the path of the local cache folder for files of a remote folder.

    Args:
        url: The URL of the remote folder.
        kind: The purpose of the cache folder, such as `mirrors`; also a component of the path.
    """
    cache = user_cache() or Path(tempfile.gettempdir()) / "can_jax"
    return cache / kind / digest_of_bytes(url.rstrip("/").encode()).hex()


def mirrored(url: str) -> Path:
    """Return the path of a local copy of the files directly in a remote folder. The files are
    copied if no copy exists, or if any file has changed since the last copy.

    Raises:
        UserError: A file cannot be read, the local folder cannot be written, or the folder is on a
            web server, which does not list its files.
    """
    if not remote.can_list(url):
        raise UserError(
            f"{shown(url)}: an index cannot be read from a web server; download it, and set "
            "config.data.index to the local folder"
        )
    try:
        files = sorted(patiently(lambda: remote.inside(url))[1])
        version = digest_of_bytes(repr(files).encode()).hex()
        copies = work_folder(url, "mirrors")
        if (copies / version).is_dir():
            return copies / version
        logging.info("copying %s to %s", shown(url), shown(str(copies)))
        # Containers that share a cache often have equal process ids.
        unfinished = copies / f"{version}.{socket.gethostname()}-{os.getpid()}"
        unfinished.mkdir(parents=True, exist_ok=True)
        try:
            for file in files:
                with (
                    open_file(file.url) as source,
                    (unfinished / os.path.basename(file.url)).open("wb") as target,
                ):
                    shutil.copyfileobj(source, target, COPIED)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    except OSError as error:
        raise unreadable(url, error) from error
    try:
        unfinished.rename(copies / version)
    except OSError:  # another process was faster
        shutil.rmtree(unfinished)
    for old in copies.iterdir():
        if old.name.split(".")[0] != version:  # files that are open remain readable
            shutil.rmtree(old, ignore_errors=True)
    return copies / version


def upload(folder: Path, url: str, last: str) -> None:
    """Copy the visible files of a local folder, without its subfolders, to an object store.

    Args:
        folder: The local folder that contains the files.
        url: The URL of the remote folder to which the files are written.
        last: The name of the file to write last, whose presence marks the upload as complete.

    Raises:
        UserError: The object store refuses a file, or cannot be reached.
    """
    files = (path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    for path in sorted(files, key=lambda path: (path.name == last, path.name)):
        target = f"{url.rstrip('/')}/{path.name}"
        try:
            patiently(functools.partial(remote.write, target, path))
        except OSError as error:
            reason = shown(reason_of(error))
            raise UserError(
                f"{shown(target)} cannot be written: {reason}; write to another folder with --out"
            ) from error
