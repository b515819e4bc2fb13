"""Matching of the classes of two sources: by name, or by label if a source has no names.

Each source numbers its own classes, so the same label can denote different classes in two sources.
`Classes` describes the classes of a training source. `Classes.match` translates the labels of
another source to class indices of the training source.
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
    """A translation of the labels of a source to class indices.

    Attributes:
        labels: The labels that can be translated, ascending.
        indices: The class index of each entry of ``labels``.
    """

    labels: Labels
    indices: Labels

    def __call__(self, labels: Labels) -> Labels:
        """Return the class index of each label as int32; -1 for a label that cannot be
        translated."""
        if not len(self.labels):
            return np.full(len(labels), -1, np.int32)
        at = np.minimum(np.searchsorted(self.labels, labels), len(self.labels) - 1)
        return np.where(self.labels[at] == labels, self.indices[at], -1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a training source, in the order of a classifier's outputs.

    Attributes:
        labels: The label of each class in the training source, ascending; not necessarily
            consecutive.
        names: The name of each class; empty if the source has no class names.
    """

    labels: Labels
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def display_names(self) -> tuple[str, ...]:
        """The names of the classes; the labels as strings if the classes have no names."""
        return self.names or tuple(map(str, self.labels.tolist()))

    @property
    def numbering(self) -> Numbering:
        """The translation of the training source's own labels to class indices."""
        return Numbering(self.labels, np.arange(len(self)))

    def match(
        self, labels: Labels, label_names: Sequence[str], split: str, train: str
    ) -> Numbering:
        """Return the translation of another source's labels to the class indices of the training
        source.

        Classes are matched by name. If only one source has class names and every name is a number,
        these numbers are compared with the labels of the other source. In all other cases in which
        a source lacks class names, the labels of both sources are compared.

        Args:
            labels: The distinct labels to translate, ascending.
            label_names: The class names of the other source, indexed by label; empty if unknown.
            split, train: Phrases that denote the other source and the training source in messages.

        Raises:
            UserError: The other source has a label without a class name, or a class that the
                training source lacks, or class names are ambiguous.
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
        """Return a phrase that counts and names the classes whose indices are missing from
        ``labels``; "" if no index is missing."""
        absent = np.setdiff1d(np.arange(len(self)), labels)
        if not len(absent):
            return ""
        some = ", ".join(repr(self.display_names[i]) for i in absent[:NAMED])
        return f"{len(absent)} of {len(self)} classes, such as {some}"

    def alike(self) -> str:
        """Return a phrase that names two classes whose names differ only in case, Unicode form, or
        surrounding blanks and slashes; "" if there are none."""
        seen: dict[str, str] = {}
        for name in self.names:
            if (other := seen.setdefault(_folded(name), name)) != name:
                return f"{other!r} and {name!r}"
        return ""

    def _unknown(self, unknown: list[str], split: str, train: str) -> str:
        """Return the error message about classes that the training source lacks, with a suggestion
        of a class with a similar name."""
        what = f"the class {unknown[0]!r}"
        if len(unknown) > 1:
            what = f"{len(unknown)} classes, such as {', '.join(map(repr, unknown[:NAMED]))},"
        folded = {_folded(name): name for name in self.names}
        close = difflib.get_close_matches(_folded(unknown[0]), folded, 1, 0.8)
        near = f"; did you mean {folded[close[0]]!r}?" if close else ""
        return f"{split} has {what} that {train} does not have{near}"


def names_of(labels: Labels, label_names: Sequence[str], split: str) -> list[str]:
    """Return the class name of each label; ``labels`` must be ascending.

    Raises:
        UserError: A label is not a valid index into ``label_names``.
    """
    if len(labels) and labels[-1] >= len(label_names):
        raise UserError(
            f"{split} has the label {labels[-1]}, but only {len(label_names)} label_names: give "
            "every class a name, or omit label_names"
        )
    return [label_names[label] for label in labels]


def _folded(name: str) -> str:
    """Return a class name in lower case (case-folded), without surrounding blanks and slashes."""
    return _composed(name).strip(" /\\").casefold()


def _composed(name: str) -> str:
    """Return a class name in Unicode form NFC, because some file systems store accents as separate
    characters."""
    return unicodedata.normalize("NFC", name)


def _refuse_duplicates(names: Sequence[str], key: Callable[[str], Any], split: str) -> None:
    """Raise `UserError` if ``key`` maps the names of two classes to the same value."""
    seen: set[Any] = set()
    for name in names:
        if key(name) in seen:
            raise UserError(
                f"{split} has two classes named {name!r}, so classes cannot be matched by name; "
                "give each class a name of its own"
            )
        seen.add(key(name))


def labels_of(source: Source, examples: Numbers, known: Labels | None) -> Labels:
    """Return the labels of some examples, -1 if unknown.

    Args:
        source: The source that contains the examples; it is read only if ``known`` is None.
        examples: The indices of the examples in the source.
        known: The labels of all examples of the source, as returned by `known_labels`; None to read
            the labels from the source.
    """
    if known is not None:
        return np.asarray(known[examples])
    parts = [
        source.read(examples[start : start + READ_AT_ONCE])[1]
        for start in range(0, len(examples), READ_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def known_labels(source: Source) -> Labels | None:
    """Return the label of each example of a source, or None if the labels are stored only in its
    records.

    The labels of an index are returned if they agree with a sample of records.
    """
    labels = source.stored_labels
    if source.labels is not None or labels is None:
        return source.labels
    some = _sample(source)
    if not (labels[some] >= 0).any():
        return None
    return labels if np.array_equal(source.read(some)[1], labels[some]) else None


def has_labels(source: Source) -> bool:
    """Return whether a source has labels. If its labels are not known, a sample of its records is
    examined."""
    labels = known_labels(source)
    if labels is None:
        labels = source.read(_sample(source))[1]
    return bool((labels >= 0).any())


def _sample(source: Source) -> Numbers:
    """Return the indices of up to `COMPARED` examples, evenly spaced over a source."""
    return np.linspace(0, source.examples - 1, min(COMPARED, source.examples)).astype(np.int64)


def without_known_class(source: Source, names: Sequence[str]) -> str:
    """Return a phrase with some class names of a source if none of its classes is in ``names``,
    else ""."""
    labels = known_labels(source)
    if labels is None or not names or not source.label_names:
        return ""
    occurring = distinct(labels)
    own = [source.label_names[label] for label in occurring[occurring < len(source.label_names)]]
    if not own or {_folded(name) for name in names} & {_folded(name) for name in own}:
        return ""
    return ", ".join(map(repr, own[:NAMED]))


def distinct(labels: Labels) -> Labels:
    """Return the distinct labels in ascending order, without negative labels, which mean
    unknown."""
    parts = [np.unique(labels[start : start + CHUNK]) for start in range(0, len(labels), CHUNK)]
    occurring = np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int32)
    return occurring[occurring >= 0]
