"""Classes that mean the same in two sources: matched by name, or by number where names are missing.

A source numbers its classes by itself, so equal numbers of two sources may be different classes.
`Classes` holds those of a training source; `Classes.match` translates the labels of another one.
"""

import dataclasses
import difflib
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from can_jax.data.sources.base import Source
from can_jax.data.sources.indexed import IndexedSource
from can_jax.utils.errors import UserError

READ_AT_ONCE = 256  # records that are read together for their labels
CHUNK = 2**20  # labels of a memory-mapped index that are looked at together
COMPARED = 64  # records by which the labels of an index are verified
NAMED = 3  # classes that a message names

Labels = Int[np.ndarray, "_"]
Numbers = Int[np.ndarray, "_"]  # of examples in a source


@dataclasses.dataclass(frozen=True)
class Numbering:
    """A translation of labels to the places of their classes.

    Attributes:
        labels: the known labels, ascending.
        places: the place of each.
    """

    labels: Labels
    places: Labels

    def __call__(self, labels: Labels) -> Labels:
        """Return the place of each label as int32, -1 for an unknown one."""
        if not len(self.labels):
            return np.full(len(labels), -1, np.int32)
        at = np.minimum(np.searchsorted(self.labels, labels), len(self.labels) - 1)
        return np.where(self.labels[at] == labels, self.places[at], -1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a training source, in the order of a classifier's outputs.

    Attributes:
        numbers: the label of each class in the training source, ascending; any integers.
        names: the name of each class; empty where the source has no names.
    """

    numbers: Labels
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def called(self) -> tuple[str, ...]:
        """The names of the classes, or their labels where they have none."""
        return self.names or tuple(map(str, self.numbers.tolist()))

    @property
    def numbering(self) -> Numbering:
        """The translation of the training source's own labels."""
        return Numbering(self.numbers, np.arange(len(self)))

    def match(
        self, labels: Labels, label_names: Sequence[str], split: str, train: str
    ) -> Numbering:
        """Return the translation of another source's labels.

        Classes are matched by name. Where one source has no names, its numbers are compared with
        the other's names if these are numbers, otherwise with the other's numbers.

        Args:
            labels: the distinct labels that occur in the other source, ascending.
            label_names: the names of its classes; empty where unknown.
            split, train: what messages call the other source and the training source.

        Raises:
            UserError: a class is not among these, or names do not tell the classes apart.
        """
        places = self.numbering(labels)
        numbers = [str(label) for label in labels]
        called = names_of(labels, label_names, split) if label_names else numbers
        # With the same name at each number, numbers agree, even where two classes share a name.
        same = all(
            number < len(label_names) and label_names[number] == name
            for number, name in zip(self.numbers.tolist(), self.names, strict=False)
        )
        named = [names for names in (self.names, called if label_names else ()) if names]
        numeric = len(named) == 1 and all(name.isdecimal() for name in named[0])
        if numeric or (len(named) == 2 and not same):
            key: Callable[[str], Any] = int if numeric else _composed
            _refuse_duplicates(self.called, key, train)
            _refuse_duplicates(called, key, split)
            place = {key(name): i for i, name in enumerate(self.called)}
            places = np.array([place.get(key(name), -1) for name in called], np.int64)
        elif not same or not self.names:
            called = numbers
        unknown = [name for name, place in zip(called, places, strict=True) if place < 0]
        if unknown:
            raise UserError(self._unknown(unknown, split, train))
        return Numbering(np.asarray(labels), places)

    def absent(self, labels: Labels) -> str:
        """Return a phrase that counts and names the classes without any of the given places."""
        absent = np.setdiff1d(np.arange(len(self)), labels)
        if not len(absent):
            return ""
        some = ", ".join(repr(self.called[i]) for i in absent[:NAMED])
        return f"{len(absent)} of {len(self)} classes, such as {some}"

    def alike(self) -> str:
        """Return a phrase that names two classes which only case or blanks tell apart, if any."""
        seen: dict[str, str] = {}
        for name in self.names:
            if (other := seen.setdefault(_folded(name), name)) != name:
                return f"{other!r} and {name!r}"
        return ""

    def _unknown(self, unknown: list[str], split: str, train: str) -> str:
        what = f"the class {unknown[0]!r}"
        if len(unknown) > 1:
            what = f"{len(unknown)} classes, such as {', '.join(map(repr, unknown[:NAMED]))},"
        folded = {_folded(name): name for name in self.names}
        close = difflib.get_close_matches(_folded(unknown[0]), folded, 1, 0.8)
        near = f"; did you mean {folded[close[0]]!r}?" if close else ""
        return f"{split} has {what} that {train} has not{near}"


def names_of(labels: Labels, label_names: Sequence[str], split: str) -> list[str]:
    """Return the name of each label.

    Raises:
        UserError: a label is beyond the names.
    """
    if len(labels) and labels[-1] >= len(label_names):
        raise UserError(
            f"{split} has the label {labels[-1]}, but only {len(label_names)} label_names: give "
            "each class a name, or none"
        )
    return [label_names[label] for label in labels]


def _folded(name: str) -> str:
    return _composed(name).strip(" /\\").casefold()


def _composed(name: str) -> str:
    """Return a name as it is spelled on every system: some take accents apart."""
    return unicodedata.normalize("NFC", name)


def _refuse_duplicates(names: Sequence[str], key: Callable[[str], Any], split: str) -> None:
    seen: set[Any] = set()
    for name in names:
        if key(name) in seen:
            raise UserError(
                f"{split} has two classes named {name!r}, so classes cannot be matched by name; "
                "give each class a name of its own"
            )
        seen.add(key(name))


def labels_of(source: Source, examples: Numbers, known: Labels | None) -> Labels:
    """Return the labels of some examples, -1 where unknown.

    Args:
        source: of the examples, which are read for their labels where these are not known.
        examples: numbers in the source.
        known: as `known_labels` of the source.
    """
    if known is not None:
        return np.asarray(known[examples])
    parts = [
        source.read(examples[start : start + READ_AT_ONCE])[1]
        for start in range(0, len(examples), READ_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def known_labels(source: Source) -> Labels | None:
    """Return the labels of a source where they are known without reading it, else None.

    An index holds the labels of records, but may have been made with another `label_key`: they
    count if some records that are read agree with them.
    """
    if source.labels is not None or not isinstance(source, IndexedSource):
        return source.labels
    labels, some = source.table.label, _sample(source)
    if not (labels[some] >= 0).any():
        return None
    return labels if np.array_equal(source.read(some)[1], labels[some]) else None


def has_labels(source: Source) -> bool:
    """Return whether a source has a label, as far as is known or some records tell."""
    known = known_labels(source)
    if known is None:
        known = source.read(_sample(source))[1]
    return bool((known >= 0).any())


def _sample(source: Source) -> Numbers:
    """Return numbers of examples that are read to learn about all."""
    return np.linspace(0, source.examples - 1, min(COMPARED, source.examples)).astype(np.int64)


def without_known_class(source: Source, names: Sequence[str]) -> str:
    """Return the classes of a source if none of them is among the names, else nothing."""
    known = known_labels(source)
    if known is None or not names or not source.label_names:
        return ""
    there = distinct(known)
    own = [source.label_names[label] for label in there[there < len(source.label_names)]]
    if not own or {_folded(name) for name in names} & {_folded(name) for name in own}:
        return ""
    return ", ".join(map(repr, own[:NAMED]))


def distinct(labels: Labels) -> Labels:
    """Return the labels that occur, ascending, without those that are unknown."""
    parts = [np.unique(labels[start : start + CHUNK]) for start in range(0, len(labels), CHUNK)]
    found = np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int32)
    return found[found >= 0]


class LabeledSource:
    """Some examples of an encoded source, with other labels.

    Args:
        source: of the images.
        chosen: numbers of the examples in it.
        labels: of each.
        label_names: of the classes.
    """

    def __init__(
        self, source: Source, chosen: Numbers, labels: Labels, label_names: tuple[str, ...]
    ):
        self._source, self._chosen = source, chosen
        self.labels, self.label_names = labels, label_names

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self._chosen)

    def read(self, examples: Numbers) -> tuple[list[bytes], np.ndarray]:
        """Return encoded images and labels; what cannot be read is empty."""
        return self._source.read(self._chosen[examples])[0], self.labels[examples]

    def describe(self, example: int) -> str:
        """Return where an example is stored."""
        return self._source.describe(int(self._chosen[example]))
