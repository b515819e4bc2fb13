"""A bounded cache of encoded images in a folder, which processes and hosts can share."""

import hashlib
import os
import threading
from pathlib import Path

from absl import logging

from can_jax.data.storage.digest import digest_of_bytes
from can_jax.data.storage.splits import shown
from can_jax.utils.errors import reason_of
from can_jax.utils.files import replacing

SPREAD = 2**64  # the number of possible hash values


class DiskCache:
    """A cache that holds a fixed fraction of the examples, chosen by a hash of their indices.

    Each epoch reads every example once, so a cache that replaces old entries by new ones would
    evict each entry before its next use. Choosing examples by hash needs no record of the disk
    space in use, and all hosts that share the folder choose the same examples.

    If each host uses a folder on its own disk, each folder holds only examples that its host has
    read. With 8 hosts and separate folders, for example, each cache holds an eighth of the chosen
    examples after the first epoch.

    Args:
        folder: The path of the cache folder; created if missing.
        limit: The approximate maximum size of the cache in bytes.
        total: The estimated size of all examples in bytes.
        version: A string that identifies the data. Cache files written with another version are
            ignored.
    """

    def __init__(self, folder: str, limit: int, total: int, version: str):
        self._folder, self._version = Path(folder), version
        self._below = int(SPREAD * min(1.0, limit / max(1, total)))
        self._working = True

    def path(self, example: int) -> Path | None:
        """Return the path of an example's cache file, which may not exist yet; None if the cache
        does not cover the example or is disabled."""
        text = f"{self._version} {example}".encode()
        name = hashlib.blake2b(text, digest_size=16).hexdigest()
        if not self._working or int(name[:16], 16) >= self._below:
            return None
        return self._folder / name[16:18] / name[18:20] / name

    def get(self, path: Path) -> bytes | None:
        """Return the image bytes in a cache file, or None if the file is missing or damaged."""
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        digest, content = stored[:8], stored[8:]
        return content if digest == digest_of_bytes(content) else None

    def put(self, path: Path, content: bytes) -> None:
        """Write an image to a cache file atomically.

        After an error, such as a full disk, the cache is disabled: `path` returns None from then
        on.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, f".{os.getpid()}-{threading.get_ident()}") as own:
                own.write_bytes(digest_of_bytes(content) + content)
        except OSError as error:
            if self._working:
                self._working = False
                logging.warning(
                    "config.data.disk_cache=%s is no longer used, because writing to it failed: %s",
                    shown(str(self._folder)), shown(reason_of(error)),
                )  # fmt: skip
