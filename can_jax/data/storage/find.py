"""Selection of the shards of a split from a file, a pattern, a folder, or several of these."""

import glob
import itertools
import os
import re
from collections.abc import Iterator

from absl import logging

from can_jax.data.storage.files import existing, exists, is_folder, listed, walk
from can_jax.data.storage.remote import demand_listing, is_remote
from can_jax.data.storage.shard_names import (
    COMPRESSED_TAR,
    is_any_shard,
    is_shard,
    log_missing_shards,
    log_not_shards,
)
from can_jax.data.storage.splits import (
    AmbiguousSplitError,
    choose_files,
    choose_folder,
    shown,
    some,
    spellings,
    split_folders,
    split_of_file,
    standard,
)
from can_jax.data.storage.unsupported import remedy
from can_jax.utils.errors import UserError

WILD = re.compile(r"[*?\[]")
MOST_BRACKETS = 8  # a name with fewer opening brackets is also matched with literal brackets


def find_shards(path: str, split: str, kind: str, compressed: bool = False) -> list[str]:
    """Return the paths of the shards of a split, sorted.

    Args:
        path: A shard, a pattern, a folder, or several of these joined by `::`. A pattern can
            contain `*`, `?`, `[…]`, `**`, ranges `{000..127}` and alternatives `{a,b}`. If the last
            part of a pattern is `*`, and a matching file is named like a shard, only files named
            like shards are selected. The placeholder `{split}` stands for any spelling of the
            split. Square brackets are literal if a file or folder with these brackets in its name
            exists. A folder stands for the shards in its subfolder named after the split. A folder
            without a subfolder of the split stands for the shards in it whose names contain the
            split; see `choose_files`.
        split: The name of the split, such as `train`.
        kind: The kind of shard, `tfrecord` or `tar`.
        compressed: Whether to include the compressed tars of a folder.

    Raises:
        UserError: No shard of the split exists, the spelling of the split is ambiguous, or all
            shards are compressed tars but ``compressed`` is False.
    """
    if "{split}" in path:
        return _find_templated(path, split, kind, compressed)
    if "::" not in path and is_folder(path):
        shards = _in_folder(path, split, kind, compressed)
        log_missing_shards(shards)
        return shards
    files = _shards_at(path, kind, compressed)
    names = _relative(files)
    chosen = set(choose_files(path, names, split, f"{kind} shard", listed=True))
    return [file for file, name in zip(files, names, strict=True) if name in chosen]


def _find_templated(path: str, split: str, kind: str, compressed: bool) -> list[str]:
    """Return the shards that match a path in which `{split}` is replaced by any spelling of the
    split; the requested spelling takes precedence.

    Raises:
        UserError: No shard matches for any spelling of the split.
        AmbiguousSplitError: Different spellings match different shards, and the requested spelling
            matches none.
    """
    missing = None
    shards = {}
    for spelling in spellings(split):
        try:
            shards[spelling] = _shards_at(path.replace("{split}", spelling), kind, compressed)
        except UserError as error:
            missing = missing or error
        if shards and spelling == split:
            break
    if not shards:
        raise missing or UserError(f"no file matches {shown(path)}")
    if len(set(map(tuple, shards.values()))) > 1:
        raise AmbiguousSplitError(
            f"{shown(path)} has several spellings of the split {split!r}: {some(list(shards))}; "
            "set the split to one of them"
        )
    return next(iter(shards.values()))


def _shards_at(path: str, kind: str, compressed: bool) -> list[str]:
    """Return the shards of all splits at a path: a shard, a pattern, a folder, or several of these
    joined by `::`.

    Raises:
        UserError: No file matches a pattern, or all shards in a folder are compressed tars and
            ``compressed`` is False.
    """
    files: list[str] = []
    for part in path.split("::"):
        if is_folder(part):
            files += [os.path.join(part, name) for name in _shards_below(part, kind, compressed)]
        else:
            files += _matching_shards(part, kind)
    return sorted(set(files))


def _in_folder(path: str, split: str, kind: str, compressed: bool) -> list[str]:
    """Return the shards of a split in a folder. The shards in the subfolder named after the
    split are returned; without such a subfolder, `choose_files` selects the shards.

    Raises:
        UserError: No shard of the split exists, the spelling of the split is ambiguous, or all
            shards are compressed tars but ``compressed`` is False.
    """
    inner: str | None = split
    if not is_folder(os.path.join(path, split)):
        named = [n for n in listed(path) if split_of_file(n) and not is_shard(n, kind)]
        folders = [n for n in named if is_folder(os.path.join(path, n))]
        inner = choose_folder(path, split_folders(folders), split)
    if inner is not None:
        folder = os.path.join(path, inner)
        names = _shards_below(folder, kind, compressed)
        if not names:
            raise UserError(_no_shard(folder, kind, split))
        loose = [name for name in listed(path) if is_shard(name, kind)]
        loose = [name for name in loose if split_of_file(name) in (None, standard(split))]
        if loose:
            logging.warning(
                "%s: %d shards beside the folder %s are left out: %s; the pattern %s/**/* "
                "selects all shards",
                shown(path), len(loose), shown(inner), some(loose), shown(path.rstrip("/")),
            )  # fmt: skip
        return [os.path.join(folder, name) for name in names]
    names = _shards_below(path, kind, compressed)
    if not names:
        raise UserError(_no_shard(path, kind, split))
    chosen = choose_files(path, names, split, f"{kind} shard", listed=False)
    return [os.path.join(path, name) for name in chosen]


def _shards_below(folder: str, kind: str, compressed: bool) -> list[str]:
    """Return the shards directly in a folder or, if there are none, those in its subfolders, as
    paths relative to the folder.

    Raises:
        UserError: All of the shards are compressed tars, and ``compressed`` is False.
    """
    here = listed(folder)
    names = [name for name in here if is_shard(name, kind)]
    zipped = [name for name in here if COMPRESSED_TAR.search(name.lower())]
    direct = bool(names or (compressed and zipped))
    below = [] if direct and is_remote(folder) else _files_below(folder)
    deep = [name for name in below if is_shard(os.path.basename(name), kind)]
    if direct and deep:
        logging.warning(
            "%s: %d shards in subfolders, such as %s, are left out; the pattern %s/**/* "
            "selects all shards",
            shown(folder), len(deep), shown(deep[0]), shown(folder.rstrip("/")),
        )  # fmt: skip
    if not direct:
        names = deep
        zipped = [name for name in below if COMPRESSED_TAR.search(name.lower())] or zipped
    if names and not is_remote(folder):
        log_not_shards(folder, here if direct else below, kind)
    if kind == "tar" and zipped:
        if compressed:
            return sorted([*names, *zipped])
        message = (
            f"{shown(folder)} has {len(zipped)} compressed tars, such as {shown(zipped[0])}, which "
            "can only be streamed: set config.data.streaming=True and config.data.examples=N, the "
            "approximate number of images"
        )
        if not names:
            raise UserError(message)
        logging.warning("%s; until both are set, the compressed tars are left out", message)
    return sorted(names)


def _matching_shards(pattern: str, kind: str) -> list[str]:
    """Return the files that match a path or pattern.

    If the last part of the pattern is `*`, and a matching file is named like a shard, only files
    named like shards are returned.
    """
    files = matches(pattern)
    if os.path.basename(pattern) != "*":
        return files
    others = [name for name in files if not is_any_shard(os.path.basename(name), kind)]
    if not others or len(others) == len(files):
        return files
    logging.warning(
        "%s: %d matching files do not have the name of a %s shard and are left out: %s",
        shown(pattern), len(others), kind, some(others),
    )  # fmt: skip
    return sorted(set(files) - set(others))


def _no_shard(folder: str, kind: str, split: str) -> str:
    """Return the error message for a folder that contains no shard of the split."""
    names = listed(folder)
    there = some(sorted(names), 6) or "nothing"
    message = f"no {kind} shard of the split {split!r} in {shown(folder)}, which contains {there}"
    advice = remedy(names)
    return f"{message}; {advice}" if advice else message


def _relative(paths: list[str]) -> list[str]:
    """Return local paths relative to the deepest folder that contains all of them, or URLs without
    their scheme."""
    shared = os.path.commonpath([os.path.dirname(path) for path in paths])
    start = len(shared.rstrip("/")) + 1 if not is_remote(paths[0]) else 0
    return [path[start:] if start else path.split("://", 1)[1] for path in paths]


def matches(pattern: str) -> list[str]:
    """Return the files that match a path or pattern, and log a warning about brace expansions that
    match no file.

    Raises:
        UserError: No file matches.
    """
    if is_remote(pattern) and WILD.search(pattern):
        demand_listing(pattern)
    elif exists(pattern):
        return [pattern]
    files: list[str] = []
    missing: list[str] = []
    expanded = list(expand_braces(pattern))
    plain = [path for path in expanded if not WILD.search(path)]
    there = existing(plain) if len(expanded) > 1 else set()
    for path in expanded:
        matching = _glob(path) if WILD.search(path) else [path] if path in there else []
        files += matching
        if not matching:
            missing.append(path)
    if not files:
        if WILD.search(pattern) or len(expanded) > 1:
            raise UserError(f"no file matches {shown(pattern)}")
        raise UserError(f"{shown(pattern)} does not exist")
    if missing:
        logging.warning(
            "%s expands to %d paths or patterns; no file matches %d of them: %s",
            shown(pattern), len(expanded), len(missing), some(missing),
        )  # fmt: skip
    return sorted(set(files))


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield the expansions of a pattern with braces, such as `a-{00..02}` or `{a,b{0..1}}`. The
    syntax is that of shells and WebDataset."""
    for start, end in _braces(pattern):
        inside = pattern[start + 1 : end]
        choices = _range(inside) or _alternatives(inside)
        if choices:
            for choice in choices:
                yield from expand_braces(f"{pattern[:start]}{choice}{pattern[end + 1 :]}")
            return
    yield pattern


def _braces(pattern: str) -> Iterator[tuple[int, int]]:
    """Yield the positions of each matching pair of braces, sorted by the position of the opening
    brace."""
    pairs, open_at = [], []
    for position, character in enumerate(pattern):
        if character == "{":
            open_at.append(position)
        elif character == "}" and open_at:
            pairs.append((open_at.pop(), position))
    yield from sorted(pairs)


def _range(inside: str) -> list[str]:
    """Return the members of a brace range, such as `000..127`, `0..10..2` or `a..e`; an empty list
    for any other text."""
    match = re.fullmatch(r"(\d+|[A-Za-z])\.\.(\d+|[A-Za-z])(?:\.\.-?(\d+))?", inside)
    if not match or match[1].isdigit() != match[2].isdigit():
        return []
    digits = match[1].isdigit()
    low, high = (int(end) if digits else ord(end) for end in match.groups()[:2])
    step = max(1, int(match[3] or 1))
    values = range(low, high + 1, step) if low <= high else range(low, high - 1, -step)
    return [str(n).zfill(len(match[1])) if digits else chr(n) for n in values]


def _alternatives(inside: str) -> list[str]:
    """Return the alternatives between the top-level commas inside braces; an empty list if there is
    no comma."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(inside):
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            parts.append(inside[start:position])
            start = position + 1
    return [*parts, inside[start:]] if parts else []


def _glob(pattern: str) -> list[str]:
    """Return the files that match a pattern. A path component that exists under its literal name is
    not treated as a pattern."""
    if is_remote(pattern):
        return _glob_remote(pattern)
    folders = ["/" if pattern.startswith("/") else ""]
    for part in filter(None, pattern.split("/")):
        after: list[str] = []
        for folder in folders:
            literal = os.path.join(folder, part)
            if os.path.lexists(literal):
                after.append(literal)
            elif part == "**":
                after += [folder, *glob.glob(f"{glob.escape(literal[:-2])}**/", recursive=True)]
            elif WILD.search(part):
                after += _glob_part(folder, part)
        folders = after
    return sorted({path for path in map(os.path.normpath, folders) if not os.path.isdir(path)})


def _glob_remote(pattern: str) -> list[str]:
    """Return the remote objects that match a pattern. The folder before the first wildcard is
    listed once."""
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if i > 2 and WILD.search(part))
    root = "/".join(parts[:first])
    expression = "/".join(map(_expression, parts[first:])).replace("**/", "(?:[^/]+/)*")
    files = (f"{folder}/{name}" for folder, names in walk(root) for name in names)
    return sorted(file for file in files if re.fullmatch(expression, file[len(root) + 1 :]))


def _expression(part: str) -> str:
    """Return the regular expression for one component of a pattern; `**` is returned unchanged."""
    if part == "**":
        return part
    pieces = re.split(r"(\*|\?|\[[^]]+\])", part)
    wild = {"*": "[^/]*", "?": "[^/]"}
    return "".join(
        wild.get(piece) or (piece.replace("[!", "[^", 1) if i % 2 else re.escape(piece))
        for i, piece in enumerate(pieces)
    )


def _glob_part(folder: str, part: str) -> list[str]:
    """Return the paths in a folder that match one component of a pattern.

    An opening bracket can be literal, or start a character class. The combinations of literal
    brackets and character classes are tried in turn, beginning with all brackets literal. The first
    combination of brackets and classes that matches a path is used. If a component has
    `MOST_BRACKETS` or more opening brackets, all of its brackets start character classes.
    """
    start = glob.escape(folder)
    pieces = part.split("[")
    if len(pieces) > MOST_BRACKETS:
        return glob.glob(os.path.join(start, part))
    for brackets in itertools.product(("[[]", "["), repeat=len(pieces) - 1):
        pattern = "".join(itertools.chain(*zip(("", *brackets), pieces, strict=True)))
        if files := glob.glob(os.path.join(start, pattern)):
            return files
    return []


def _files_below(folder: str) -> list[str]:
    """Return the paths of the visible files in all subfolders of a folder, relative to the
    folder."""
    start = len(folder.rstrip("/")) + 1
    nested = ((inner.rstrip("/")[start:], files) for inner, files in walk(folder))
    return sorted(f"{inner}/{name}" for inner, files in nested if inner for name in files)
