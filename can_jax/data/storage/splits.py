"""Recognition of the splits `train`, `val` and `test` in the names of files and folders."""

import os
import re
from collections.abc import Container, Iterable, Sequence

from absl import logging

from can_jax.utils.errors import UserError, printable

# The words that stand for each standard split in file and folder names, regardless of case.
SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
STANDARD = {word: split for split, words in SPELLINGS.items() for word in words}
# Further words that the name of a split may contain, detached or attached: `Test set`, `trainset`.
FILLERS = "sets?|data|images?|imgs?|split|files"
COMPOUND = re.compile(rf"({'|'.join(STANDARD)})(?:{FILLERS})")
SET_SPLIT = (
    "set config.data.split, config.probe.split or config.data.test_split to a split that exists"
)
WRITE_SPLIT = (
    "replace the name of the split in config.data.path by {split}, as in /data/{split}-*.tar, or "
)


class AmbiguousSplitError(UserError):
    """An error raised if several folders or spellings, such as `val` and `dev`, match the requested
    split, and none is spelled exactly as requested."""


def standard(split: str) -> str:
    """Return the standard name of a split, such as `val` for `Validation`; any other name is
    returned in lower case."""
    return STANDARD.get(split.lower(), split.lower())


def spellings(split: str) -> list[str]:
    """Return all spellings of a split in the usual combinations of upper and lower case, beginning
    with the given spelling."""
    words = [split, *SPELLINGS.get(standard(split), ())]
    cases = (str, str.lower, str.title, str.upper)
    return list(dict.fromkeys(case(word) for case in cases for word in words))


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case; digits and punctuation separate words.

    A compound word such as `trainset` is shortened to the word for the split, here `train`.
    """
    words = re.findall(r"[^\W\d_]+", name.lower())
    return [match[1] if (match := COMPOUND.fullmatch(word)) else word for word in words]


def split_of_file(name: str) -> str | None:
    """Return the standard split that a file name contains as a word, or None. If several words name
    a split, the last one counts."""
    return next((STANDARD[word] for word in reversed(words_of(name)) if word in STANDARD), None)


def split_of_folder(name: str) -> str | None:
    """Return the standard split that a folder's name denotes, such as `test` for `Test set` and
    `val` for `val2017`. A name with other words, such as `train station`, denotes no split."""
    words = [word for word in words_of(name) if not re.fullmatch(FILLERS, word)]
    return STANDARD.get(words[0]) if len(words) == 1 else None


def split_folders(
    names: Iterable[str], *, beside: bool = False, flat: Container[str] = ()
) -> dict[str, list[str]]:
    """Return the folders that are named after splits, as a dict from standard split to folders.

    Folders that `split_of_folder` recognizes, such as `val`, are included. Folders whose names
    differ only in the split, such as `images_train` and `images_val`, are included as well. A
    folder such as `train station` is not included, because it is a class.

    Args:
        names: The names of subfolders of one folder; names without a split are ignored.
        beside: Whether subfolders without a split in their names also contain images. If ``beside``
            is True, folders whose names differ only in the split are classes, such as `crash test`
            and `crash train`. If ``beside`` is True, a folder `train` in ``flat`` is a class of
            vehicles, unless other folders are named after splits.
        flat: The names of the folders with images directly in them.
    """
    names = sorted(names)
    rests: dict[str, set[str]] = {}
    for name in names:
        if split := split_of_file(name):
            rests.setdefault(_rest(name), set()).add(split)
    groups: dict[str, list[str]] = {}
    for name in names:
        split = split_of_file(name)
        if split and (split_of_folder(name) or (len(rests[_rest(name)]) > 1 and not beside)):
            groups.setdefault(split, []).append(name)
    vehicle = beside and list(groups) == ["train"] and len(groups["train"]) == 1
    if vehicle and groups["train"][0].lower() == "train" and groups["train"][0] in flat:
        return {}
    return groups


def _rest(name: str) -> str:
    """Return a folder's name in lower case, after removing the word for its split."""
    split = split_of_file(name)
    words = "|".join(SPELLINGS[split]) if split else ""
    return re.sub(rf"(?<![^\W\d_])({words})({FILLERS})?(?![^\W\d_])", "", name.lower())


def choose_folder(path: str, groups: dict[str, list[str]], split: str) -> str | None:
    """Return the name of a split's folder in ``path``, or None if the split has no folder there.

    Raises:
        AmbiguousSplitError: Several folders are named after the split, and none has exactly the
            requested name.
    """
    there = groups.get(standard(split), [])
    chosen = [split] if split in there else _of_one_spelling(path, there, split)
    if split in there:
        _log_left_out(path, [name for name in there if name != split], split, "folders")
    if len(chosen) > 1:
        raise AmbiguousSplitError(
            f"{shown(path)} has several folders of the split {split!r}: {some(chosen)}; set the "
            "split to the name of one of them"
        )
    return chosen[0] if chosen else None


def choose_files(
    path: str,
    names: Sequence[str],
    split: str,
    what: str,
    *,
    listed: bool,
    patterns: bool = True,
) -> list:
    """Return the files of a split, in the order of ``names``.

    Args:
        path: The file, pattern or folder that the user gave.
        names: The paths of the candidate files, relative to a common folder.
        split: The requested split, in any spelling.
        what: A noun that messages use for one of the files, such as `tar shard`.
        listed: Whether ``path`` is a file, a pattern or a list of paths, rather than one folder. If
            ``listed`` is True, `train` consists of all files without another split in their names
            or, if there are none, of all files. If ``listed`` is False, `train` consists of the
            files with `train` in their names or, if there are none, of the files without any split.
        patterns: Whether ``path`` may be a pattern with the placeholder ``{split}``.

    Raises:
        UserError: No file belongs to the split, or the spelling of the split in the names is
            ambiguous.
    """
    requested = standard(split)
    splits = {name: split_of_file(name) for name in names}
    if requested not in SPELLINGS:  # a name of the user's own, such as `minival`
        own_word = re.compile(rf"(?<![^\W\d_]){re.escape(requested)}(?![^\W\d_])")
        splits |= {name: requested for name in names if own_word.search(name.lower())}
    undivided = [name for name in names if splits[name] is None]
    if requested == "train" and listed:
        chosen = [name for name in names if splits[name] in (None, "train")] or list(names)
    else:
        own = [name for name in names if splits[name] == requested]
        chosen = _of_one_spelling(path, own, split)
    if not chosen:
        whole = _holds_only(path, requested, splits.values(), listed=listed)
        chosen = undivided if requested == "train" or whole else []
    if not chosen:
        raise UserError(
            f"no {what} of the split {split!r} in {shown(path)}, which has {_overview(splits)}; "
            f"{WRITE_SPLIT if patterns else ''}{SET_SPLIT}"
        )
    others = names if listed else undivided
    _log_left_out(path, sorted(set(others) - set(chosen)), split)
    return chosen


def _of_one_spelling(path: str, names: list[str], split: str) -> list[str]:
    """Return the names that spell a split as requested, or all names if all of them spell the split
    in the same way.

    Raises:
        AmbiguousSplitError: The names spell the split in different ways, none of which is the
            requested one.
    """
    spelled: dict[str, list[str]] = {}
    for name in names:
        words = [word for word in words_of(name) if standard(word) == standard(split)]
        spelled.setdefault(words[-1] if words else split.lower(), []).append(name)
    if len(spelled) < 2:
        return names
    if own := spelled.get(split.lower()):
        _log_left_out(path, [name for name in names if name not in own], split)
        return own
    raise AmbiguousSplitError(
        f"{shown(path)} spells the split {split!r} in several ways: {some(sorted(spelled))}; "
        "set the split to one of them"
    )


def choose_images(path: str, names: list[str], split: str) -> list[str]:
    """Return the images of a split below a folder in which the split has no subfolder of its own.

    A top-level folder named after another split, such as `val/` beside the folders of classes,
    belongs to that split. Deeper folders determine the split only if they name several splits, such
    as `cat/train/` and `cat/val/`.

    Raises:
        UserError: ``names`` is not empty, but no image belongs to the split.
    """
    requested = standard(split)
    folders = {os.path.dirname(name) for name in names}
    parts = {folder: folder.split(os.sep) for folder in folders}
    there = {part[0] for part in parts.values()} - {""}
    flat = {folder for folder in folders if os.sep not in folder}
    beside = any(split_of_file(name) is None for name in there)
    groups = split_folders(there, beside=beside, flat=flat)
    tops = {folder: key for key, group in groups.items() for folder in group}
    inner = {folder: [split_of_folder(name) for name in parts[folder][1:]] for folder in folders}
    several = len({key for keys in inner.values() for key in keys if key}) > 1
    splits = {
        folder: next((key for key in inner[folder] if key and several), tops.get(parts[folder][0]))
        for folder in folders
    }
    if requested in splits.values():
        chosen = [name for name in names if splits[os.path.dirname(name)] == requested]
    elif requested == "train" or _holds_only(path, requested, splits.values(), listed=False):
        chosen = [name for name in names if splits[os.path.dirname(name)] is None]
    else:
        chosen = []
    if names and not chosen:
        raise UserError(
            f"there is no folder {shown(os.path.join(path, split))} for the split {split!r}; "
            f"{shown(path)} has {_overview({n: splits[os.path.dirname(n)] for n in names})}; "
            f"{SET_SPLIT}"
        )
    left_out = sorted(set(names) - set(chosen)) if len(chosen) < len(names) else []
    _log_left_out(path, left_out, split)
    return chosen


def _holds_only(path: str, requested: str, stated: Iterable[str | None], *, listed: bool) -> bool:
    """Return whether the name of a folder assigns all files in it to the requested split.

    Args:
        path: The folder or, if ``listed`` is True, a file or pattern in the folder.
        requested: The standard name of the split.
        stated: The split that the name of each file or subfolder states, or None. If any
            name states a split, the folder is assumed to hold several splits.
        listed: Whether ``path`` is a file or pattern in the folder, not the folder itself.
    """
    path = path.rstrip("/")
    folder = os.path.basename(os.path.dirname(path) if listed else path)
    return split_of_folder(folder) == requested and not any(stated)


def _overview(splits: dict[str, str | None]) -> str:
    """Return a phrase that lists the splits of some files, each with one file as an example."""
    examples = {key: name for name, key in reversed(splits.items())}
    undivided = examples.pop(None, None)
    stated = [f"{key} ({shown(name)})" for key, name in sorted(examples.items(), key=str)]
    if undivided is not None:
        stated.append(
            f"{'' if stated else 'only '}files without a split in their names ({shown(undivided)})"
        )
    return ", ".join(stated) or "none"


def _log_left_out(path: str, names: Sequence[str], split: str, what: str = "files") -> None:
    """Log a warning about the files or folders that are left out, because they do not belong to the
    requested split."""
    if names:
        logging.warning(
            "%s: %d %s do not belong to the split %r and are left out: %s; to use them, set "
            "config.data.split or config.data.path",
            shown(path), len(names), what, split, some(names),
        )  # fmt: skip


def some(names: Sequence[str], limit: int = 4) -> str:
    """Return a phrase that lists at most ``limit`` names and counts the rest."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(shown, names[:limit])) + more


def shown(name: str) -> str:
    """Return a file name on one line, with control characters and invalid UTF-8 escaped."""
    return printable(os.fsencode(name).decode(errors="backslashreplace"))
