"""Small files, replaced whole: whoever reads one sees the old text or the new, never a part."""

import contextlib

from etils import epath


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
