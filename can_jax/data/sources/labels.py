"""Class matching between two sources: by name, or by label if names are missing.

Each source numbers its own classes, so equal labels of two sources may be different classes.
`Classes` holds the classes of a training source. `Classes.match` translates the labels of another
source to them.
"""

import dataclasses
import difflib
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from can_jax.data.sources.base import Source
from can_jax.utils.errors import UserError

READ_AT_ONCE = 256  # records read together for their labels
CHUNK = 2**20  # labels of a memory-mapped index processed together
COMPARED = 64  # records read to verify the labels of an index
NAMED = 3  # classes that a message names

Labels = Int[np.ndarray, "_"]
Numbers = Int[np.ndarray, "_"]  # indices of examples in a source


@dataclasses.dataclass(frozen=True)
class Numbering:
    """A translation of labels to class indices.

    Attributes:
        labels: The known labels, ascending.
        indices: The class index of each known label.
    """

    labels: Labels
    indices: Labels

    def __call__(self, labels: Labels) -> Labels:
        """Return the class index of each label as int32; -1 for an unknown label."""
        if not len(self.labels):
            return np.full(len(labels), -1, np.int32)
        at = np.minimum(np.searchsorted(self.labels, labels), len(self.labels) - 1)
        return np.where(self.labels[at] == labels, self.indices[at], -1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a training source, in the order of a classifier's outputs.

    Attributes:
        labels: The label of each class in the training source, ascending; any integers.
        names: The name of each class; empty if the source has no names.
    """

    labels: Labels
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def display_names(self) -> tuple[str, ...]:
        """The names of the classes, or their labels if they have no names."""
        return self.names or tuple(map(str, self.labels.tolist()))

    @property
    def numbering(self) -> Numbering:
        """The translation of the training source's own labels."""
        return Numbering(self.labels, np.arange(len(self)))

    def match(
        self, labels: Labels, label_names: Sequence[str], split: str, train: str
    ) -> Numbering:
        """Return the translation of another source's labels to class indices.

        Classes are matched by name. If one source has no names, its labels are compared with the
        other's names if those are numbers, and otherwise with the other's labels.

        Args:
            labels: The distinct labels that occur in the other source, ascending.
            label_names: The names of its classes; empty if unknown.
            split, train: The names of the other and the training source in messages.

        Raises:
            UserError: A class is not among these classes, or names are ambiguous.
        """
        indices = self.numbering(labels)
        as_text = [str(label) for label in labels]
        called = names_of(labels, label_names, split) if label_names else as_text
        # If both sources have the same name for each label, the labels agree, even if two
        # classes share a name.
        same = all(
            label < len(label_names) and label_names[label] == name
            for label, name in zip(self.labels.tolist(), self.names, strict=False)
        )
        named = [names for names in (self.names, called if label_names else ()) if names]
        numeric = len(named) == 1 and all(name.isdecimal() for name in named[0])
        if numeric or (len(named) == 2 and not same):
            key: Callable[[str], Any] = int if numeric else _composed
            _refuse_duplicates(self.display_names, key, train)
            _refuse_duplicates(called, key, split)
            index_of = {key(name): i for i, name in enumerate(self.display_names)}
            indices = np.array([index_of.get(key(name), -1) for name in called], np.int64)
        elif not same or not self.names:
            called = as_text
        unknown = [name for name, index in zip(called, indices, strict=True) if index < 0]
        if unknown:
            raise UserError(self._unknown(unknown, split, train))
        return Numbering(np.asarray(labels), indices)

    def absent(self, labels: Labels) -> str:
        """Return a phrase that counts and names the classes that are not in ``labels``, class
        indices."""
        absent = np.setdiff1d(np.arange(len(self)), labels)
        if not len(absent):
            return ""
        some = ", ".join(repr(self.display_names[i]) for i in absent[:NAMED])
        return f"{len(absent)} of {len(self)} classes, such as {some}"

    def alike(self) -> str:
        """Return a phrase that names two classes which differ only in case or surrounding blanks,
        or ""."""
        seen: dict[str, str] = {}
        for name in self.names:
            if (other := seen.setdefault(_folded(name), name)) != name:
                return f"{other!r} and {name!r}"
        return ""

    def _unknown(self, unknown: list[str], split: str, train: str) -> str:
        """Return the message that names unknown classes and suggests a similar known one."""
        what = f"the class {unknown[0]!r}"
        if len(unknown) > 1:
            what = f"{len(unknown)} classes, such as {', '.join(map(repr, unknown[:NAMED]))},"
        folded = {_folded(name): name for name in self.names}
        close = difflib.get_close_matches(_folded(unknown[0]), folded, 1, 0.8)
        near = f"; did you mean {folded[close[0]]!r}?" if close else ""
        return f"{split} has {what} that {train} does not have{near}"


def names_of(labels: Labels, label_names: Sequence[str], split: str) -> list[str]:
    """Return the name of each label; the labels must ascend.

    Raises:
        UserError: A label exceeds the list of names.
    """
    if len(labels) and labels[-1] >= len(label_names):
        raise UserError(
            f"{split} has the label {labels[-1]}, but only {len(label_names)} label_names: give "
            "each class a name, or none"
        )
    return [label_names[label] for label in labels]


def _folded(name: str) -> str:
    """Return a name without surrounding blanks and slashes, case-folded."""
    return _composed(name).strip(" /\\").casefold()


def _composed(name: str) -> str:
    """Return a name in Unicode form NFC, because some systems decompose accents."""
    return unicodedata.normalize("NFC", name)


def _refuse_duplicates(names: Sequence[str], key: Callable[[str], Any], split: str) -> None:
    """Raise `UserError` if two classes have the same name under ``key``."""
    seen: set[Any] = set()
    for name in names:
        if key(name) in seen:
            raise UserError(
                f"{split} has two classes named {name!r}, so classes cannot be matched by name; "
                "give each class a name of its own"
            )
        seen.add(key(name))


def labels_of(source: Source, examples: Numbers, known: Labels | None) -> Labels:
    """Return the labels of some examples; -1 where unknown.

    Args:
        source: The source that holds the examples. They are read if ``known`` is None.
        examples: The indices of the examples in the source.
        known: The result of `known_labels` for the source.
    """
    if known is not None:
        return np.asarray(known[examples])
    parts = [
        source.read(examples[start : start + READ_AT_ONCE])[1]
        for start in range(0, len(examples), READ_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def known_labels(source: Source) -> Labels | None:
    """Return the labels of a source if they are known without reading it, else None.

    Labels of an index are returned if they agree with a sample of records.
    """
    labels = source.stored_labels
    if source.labels is not None or labels is None:
        return source.labels
    some = _sample(source)
    if not (labels[some] >= 0).any():
        return None
    return labels if np.array_equal(source.read(some)[1], labels[some]) else None


def has_labels(source: Source) -> bool:
    """Return whether a source has labels, as far as is known or a sample of records shows."""
    labels = known_labels(source)
    if labels is None:
        labels = source.read(_sample(source))[1]
    return bool((labels >= 0).any())


def _sample(source: Source) -> Numbers:
    """Return the indices of examples, spread over a source, that are read to characterize it."""
    return np.linspace(0, source.examples - 1, min(COMPARED, source.examples)).astype(np.int64)


def without_known_class(source: Source, names: Sequence[str]) -> str:
    """Return the classes of a source if none of them is among ``names``, else nothing."""
    labels = known_labels(source)
    if labels is None or not names or not source.label_names:
        return ""
    occurring = distinct(labels)
    own = [source.label_names[label] for label in occurring[occurring < len(source.label_names)]]
    if not own or {_folded(name) for name in names} & {_folded(name) for name in own}:
        return ""
    return ", ".join(map(repr, own[:NAMED]))


def distinct(labels: Labels) -> Labels:
    """Return the labels that occur, ascending, without unknown (negative) ones."""
    parts = [np.unique(labels[start : start + CHUNK]) for start in range(0, len(labels), CHUNK)]
    occurring = np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int32)
    return occurring[occurring >= 0]
