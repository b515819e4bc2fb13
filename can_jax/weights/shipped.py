"""Pretrained encoders that are installed with the package, and are loaded by name.

Each folder of `can_jax/weights/shipped` is an export of `can-jax export --format=safetensors`, and
its `README.md` states how the encoder was trained.
"""

from pathlib import Path

from etils import epath

FOLDER = Path(__file__).parent / "shipped"


def shipped_names() -> list[str]:
    """Return the names of the installed encoders, in alphabetical order."""
    return sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def shipped_or_same(path: epath.Path) -> epath.Path:
    """Return the folder of an installed encoder if ``path`` is its name, otherwise ``path``.

    A file or folder of that name in the working directory takes precedence.
    """
    if str(path) in shipped_names() and not path.exists():
        return epath.Path(FOLDER / str(path))
    return path
