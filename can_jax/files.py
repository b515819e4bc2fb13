"""Small files, replaced whole: whoever reads one sees the old text or the new, never a part. And
where that lies which can be made again."""

import contextlib
import os
from pathlib import Path

from etils import epath


def user_cache() -> Path:
    """The folder of what is kept between starts to save time, in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "can_jax"


def replace_text(path: epath.Path, text: str) -> None:
    """Write a text file in one move. Where there is no room for it, the old one stays.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
