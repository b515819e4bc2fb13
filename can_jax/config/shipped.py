"""Lookup of the recipes, protocols, studies, reference ranges and launchers shipped with the
package.

In a checkout, shipped files are in the top-level folders `configs/` and `launch/`; in a wheel, they
are inside the package. Names such as `vit_l`, `eval/knn`, `study/cifar10`, `healthy/quickstart`
and `launch/slurm` are valid in a checkout and in a wheel.
"""

import ast
import difflib
import json
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from can_jax.utils.errors import UserError


class Kind(NamedTuple):
    """A kind of shipped file, such as the pretraining recipes.

    Attributes:
        title: The noun that messages use for a file of this kind, such as ``study``.
        prefix: The prefix that a file's name begins with, such as ``eval/``; empty for recipes.
        suffix: The suffix of the files, such as ``.py``.
        command: The program to which the file is given: a module of can_jax, or ``bash``.
    """

    title: str
    prefix: str
    suffix: str
    command: str

    @property
    def one(self) -> str:
        """The title of the kind with an indefinite article, for messages."""
        return f"{'an' if self.title[0] in 'aeiou' else 'a'} {self.title}"


KINDS = {
    "recipe": Kind("pretraining recipe", "", ".py", "can_jax.main"),
    "protocol": Kind("evaluation protocol", "eval/", ".py", "can_jax.evaluate"),
    "study": Kind("study", "study/", ".py", "can_jax.study"),
    "ranges": Kind("file of reference ranges", "healthy/", ".json", "can_jax.study.healthy"),
    "launcher": Kind("launcher", "launch/", ".sh", "bash"),
}


def folder_of(prefix: str) -> Path:
    """Return the folder of the shipped files whose names have a prefix, such as ``eval/``."""
    package = Path(__file__).parents[1]
    # A wheel contains the folders inside the package, a checkout beside it.
    top = package if (package / "configs").is_dir() else package.parent
    return top / prefix if prefix == "launch/" else top / "configs" / prefix


def names_of(kind: str) -> list[str]:
    """Return the names of all shipped files of a kind, sorted."""
    _, prefix, suffix, _ = KINDS[kind]
    return sorted(prefix + path.stem for path in folder_of(prefix).glob(f"*{suffix}"))


def find_shipped(name: str, kind: str) -> Path | None:
    """Return the path of the shipped file with the given name, or None if there is none.

    The names ``vit_l``, ``vit_l.py`` and ``configs/vit_l.py`` are equivalent. The name can omit the
    prefix of the kind, such as ``eval/``. If files of several kinds match, the one of the kind
    ``kind`` is returned.
    """
    suffix = KINDS[kind].suffix
    parts = PurePosixPath(name.removesuffix(suffix)).parts
    if not parts or ".." in parts or parts[0] == "/":
        return None
    short = "/".join(parts[1:] if parts[0] in ("configs", "launch") else parts)
    prefixes = [KINDS[kind].prefix, "", *(k.prefix for k in KINDS.values() if k.suffix == suffix)]
    for prefix in prefixes:
        path = folder_of(prefix) / f"{short}{suffix}"
        if short and path.is_file():
            return path
    return None


def find(name: str, kind: str, option: str) -> Path:
    """Return the path of a file that is given by its path or by the name of a shipped file.

    Args:
        name: The path of a file, or the name of a shipped file. A file at the path ``name`` takes
            precedence over a shipped file only if ``name`` ends with the suffix of the kind, such
            as ``.py``.
        kind: The kind of file, a key of `KINDS`.
        option: The option as it appears in messages, such as ``--config=vit_x``.

    Raises:
        UserError: No file matches ``name``; the message suggests the most similar name, if any.
    """
    path, shipped = Path(name), find_shipped(name, kind)
    if shipped and not (path.is_file() and name.endswith(KINDS[kind].suffix)):
        return shipped
    if path.is_file():
        return path
    available = f"shipped are {', '.join(names_of(kind))}"
    if path.is_dir():
        raise UserError(f"{option} is a folder, not {KINDS[kind].one}; {available}")
    near = _nearest(name, kind)
    hint = f"did you mean {near}? " if near else ""
    missing = f"there is no such file, and no {KINDS[kind].title} of that name"
    raise UserError(f"{option}: {missing}; {hint}{available}")


def _nearest(name: str, kind: str) -> str | None:
    """Return the file name or path that is spelled most like ``name``, or None."""
    _, prefix, suffix, _ = KINDS[kind]
    path = Path(name)
    if path.with_name(path.name + suffix).is_file():
        return name + suffix
    beside = path.parent if path.parent != Path() else None
    choices = {str(file) for file in beside.glob(f"*{suffix}")} if beside else set()
    for shipped_name in names_of(kind):
        short = shipped_name.removeprefix(prefix)
        choices |= {
            short,
            shipped_name,
            f"{shipped_name}{suffix}",
            f"configs/{shipped_name}{suffix}",
        }
    alike = {choice.lower(): choice for choice in sorted(choices)}
    spelled = name.lower().replace("-", "_")
    return next((alike[c] for c in difflib.get_close_matches(spelled, alike, n=1)), None)


def summary(path: Path) -> str:
    """Return a one-line summary of a shipped file."""
    text = path.read_text()
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    if path.suffix == ".json":
        return f"derived from {json.loads(text)['runs']} runs"
    comments = " ".join(line[2:] for line in text.splitlines() if line.startswith("# "))
    return comments.split(". ")[0].split(":  ")[0]  # Indented text is an example.
