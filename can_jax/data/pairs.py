"""A training and a test split that go together: opened, matched by class, and kept apart.

The probe of a run and every protocol of an evaluation open their examples here.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from can_jax.data.evaluation import spread
from can_jax.data.labels import (
    Classes,
    LabeledSource,
    Labels,
    Numbering,
    Numbers,
    distinct,
    has_labels,
    known_labels,
    labels_of,
    names_of,
    without_known_class,
)
from can_jax.data.overlap import copies, hold_out, same_examples
from can_jax.data.source import ArraySource, Source, available_splits, open_source
from can_jax.data.splits import SPELLINGS, standard
from can_jax.errors import UserError

ALL = 2**62
TEST_SPLITS = ("test", "val")  # where a person chose none; in any spelling


@dataclasses.dataclass(frozen=True)
class Part:
    """Labeled examples of a split, chosen and not yet read.

    Attributes:
        name: the split, for messages and results.
        data: the config block it was opened by.
        source: of the images.
        examples: numbers of the chosen examples in the source.
        labels: the source's own label of each.
        numbering: the translation of the source's labels to places of classes.
        classes: of the training source.
    """

    name: str
    data: ConfigDict
    source: Source
    examples: Numbers
    labels: Labels
    numbering: Numbering
    classes: Classes

    def labeled(self) -> Source:
        """Return the chosen examples alone as a source, labeled by places of classes."""
        labels = self.numbering(self.labels)
        if isinstance(self.source, ArraySource):
            whole = len(self.examples) == self.source.examples
            images = self.source.images if whole else self.source.images[self.examples]
            return ArraySource(images, labels, self.classes.names)
        return LabeledSource(self.source, self.examples, labels, self.classes.names)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Numbers to learn from and to test on.

    Attributes:
        train, test: the examples.
        classes: of the training source.
        notes: what a person has to know of them, a sentence each.
    """

    train: Part
    test: Part
    classes: Classes
    notes: tuple[str, ...]


def open_pair(
    data: ConfigDict,
    splits: Sequence[str],
    *,
    chosen: bool = False,
    counts: tuple[int | None, int | None] = (None, None),
    share: float,
    seed: int,
    train: Source | None = None,
) -> Pair:
    """Open training and test examples with the same classes.

    Where there is no split to test on, or it reads the very files of the training split, a share of
    the training examples is held out.

    Args:
        data: a config block that names the data.
        splits: the splits to test on, the preferred one first; see `open_test`.
        chosen: a person chose the split for this very purpose: nothing is held out.
        counts: training and test examples to choose, evenly spread; None for all.
        share: of the training examples, to hold out where there is no test split.
        seed: of the examples that are held out.
        train: the training source, where it is open already.

    Raises:
        UserError: a split is missing, has no labels or has unknown classes.
    """
    notes: list[str] = []
    source = train or open_source(data, data.split)
    known = known_labels(source)
    if tuple(splits) == (data.split,):
        name: str = data.split
        other: Source | None = source
    else:
        name, other = open_test(data, splits, notes=notes, names=source.label_names)
    same = other is not None and (name == data.split or same_examples(source, other))
    if same and not chosen:
        notes.append(f"the split {name!r} is the training split {data.split!r} itself")
    held = other is None or (same and not chosen)
    if other is None or held:
        other, other_known, name = source, None, f"{data.split} (held out)"
        examples, labels, test_examples, test_labels = _held_out(
            source, known, data.split, counts, share, seed, notes
        )
    else:
        other_known = known_labels(other)
        examples, labels = choose(source, known, data.split, counts[0])
        test_examples, test_labels = choose(other, other_known, name, counts[1])
    train_called, test_called = f"the split {data.split!r}", f"the split {name!r}"
    classes, complete = classes_of(source, known, labels, counts[0], train_called)
    there = distinct(test_labels if other_known is None else other_known)
    if not complete:  # other classes may be among the records that were not looked at
        classes = Classes(np.union1d(classes.numbers, there))
    numbering = classes.match(there, other.label_names, test_called, train_called)
    if complete and not held and (absent := classes.absent(numbering(there))):
        notes.append(f"{test_called} has no image of {absent}")
    if alike := classes.alike():
        notes.append(f"{train_called} has two classes that differ in spelling only: {alike}")
    if absent := classes.absent(classes.numbering(distinct(labels))):
        notes.append(f"no training example is chosen of {absent}")
    if bool(source.label_names) != bool(other.label_names):
        nameless = test_called if source.label_names else train_called
        notes.append(f"{nameless} has no label_names, so classes are matched by number")
    if same and not held:
        notes.append(
            f"{train_called} and {test_called} are the same examples: accuracies say nothing"
        )
    else:
        found, compared = copies(source, examples, other, test_examples)
        if found:
            where = "among the other examples" if held else f"in {train_called}"
            notes.append(
                f"{found} of {compared} examples of {test_called} that were compared are also "
                f"{where}, byte for byte: accuracies say less than they seem to"
            )
    if len(classes) == 1:
        notes.append(
            f"{train_called} has a single class, {classes.called[0]!r}: accuracies say nothing; "
            "config.data.path should be the folder that contains the class folders or the splits"
        )
    parts = (
        Part(data.split, data, source, examples, labels, classes.numbering, classes),
        Part(name, data, other, test_examples, test_labels, numbering, classes),
    )
    return Pair(*parts, classes, tuple(notes))


def open_test(
    data: ConfigDict, splits: Sequence[str], *, notes: list[str], names: Sequence[str] = ()
) -> tuple[str, Source | None]:
    """Return the name and source of the first of some splits that has labels; None without any.

    Args:
        data: a config block that names the data.
        splits: the splits to test on, the preferred one first. A single one has to be there.
        notes: get what a person has to know.
        names: of the known classes. A split with none of them is passed over, such as a `test`
            whose images all lie in `unknown/`.

    Raises:
        UserError: there is no such split, and no other one may take its place.
    """
    if len(splits) == 1:
        return splits[0], open_source(data, splits[0])
    problems: dict[str, str] = {}
    there, missing = available_splits(data, problems), ""
    for name in splits:
        if standard(name) in SPELLINGS and standard(name) not in there:
            problem = problems.get(standard(name), f"there is no split {name!r}")
            missing = f"{missing}; {problem}" if missing else problem
            continue
        source = open_source(data, name)
        if not has_labels(source):
            missing = missing or f"the split {name!r} has no labels"
            continue
        if strange := without_known_class(source, names):
            missing = missing or f"the split {name!r} has no known class, only {strange}"
            continue
        if missing:
            notes.append(f"{missing}; {name!r} takes its place")
        return name, source
    notes.append(missing)
    return splits[0], None


def open_part(
    data: ConfigDict, split: str, source: Source, count: int | None, classes: Classes, called: str
) -> tuple[Part, str]:
    """Choose examples of a split by itself, for a classifier of known classes.

    Args:
        data: the config block that the source was opened by.
        split: its name.
        source: of the images.
        count: examples to choose, evenly spread; None for all.
        classes: of the classifier.
        called: what messages call the split.

    Returns:
        The examples, and a phrase that counts and names the classes without any.

    Raises:
        UserError: it has no labels or has unknown classes.
    """
    known = known_labels(source)
    examples, labels = choose(source, known, split, count)
    there = distinct(labels if known is None else known)
    numbering = classes.match(there, source.label_names, called, "the classifier's training data")
    part = Part(split, data, source, examples, labels, numbering, classes)
    return part, classes.absent(numbering(there))


def open_own(data: ConfigDict, split: str, count: int | None, *, labeled: bool = True) -> Part:
    """Open a split whose classes are those that it has itself, or are of no interest.

    Args:
        data, split, count: as in `open_part`.
        labeled: leave out what has no label.
    """
    source = open_source(data, split)
    if not labeled:
        examples = spread(source.examples, count or ALL)
        labels = np.full(len(examples), -1, np.int32)
        nothing = Classes(labels[:0])
        return Part(split, data, source, examples, labels, nothing.numbering, nothing)
    known = known_labels(source)
    examples, labels = choose(source, known, split, count)
    classes, _ = classes_of(source, known, labels, count, f"the split {split!r}")
    return Part(split, data, source, examples, labels, classes.numbering, classes)


def choose(
    source: Source, known: Labels | None, split: str, count: int | None
) -> tuple[Numbers, Labels]:
    """Return numbers and labels of labeled examples, evenly spread over the source.

    Args:
        source: of the examples.
        known: as `known_labels` of the source.
        split: what messages call it.
        count: of examples; None for all.

    Raises:
        UserError: there is none.
    """
    if known is not None:
        able = np.flatnonzero(known >= 0)
        examples = able[spread(len(able), count or ALL)]
    else:
        examples = spread(source.examples, count or ALL)
    labels = labels_of(source, examples, known)
    examples, labels = examples[labels >= 0], labels[labels >= 0]
    if not len(examples):
        raise UserError(f"config.data: no labelled image in the split {split!r}")
    return examples, labels


def classes_of(
    source: Source, known: Labels | None, labels: Labels, count: int | None, split: str
) -> tuple[Classes, bool]:
    """Return the classes of a training source, and whether they are known to be all of them.

    Args:
        source: of the training examples.
        known: as `known_labels` of the source.
        labels: of the chosen examples.
        count: how many were asked for; None for all.
        split: what messages call the source.

    Raises:
        UserError: a label is beyond the names.
    """
    complete = True
    if known is not None:
        numbers = distinct(known)
    elif count is None:
        numbers = distinct(labels)
    else:  # a few of many records: the names are all that is known of the others
        numbers = distinct(labels)
        names_of(numbers if source.label_names else numbers[:0], source.label_names, split)
        if source.label_names:
            numbers = np.arange(len(source.label_names))
        complete = bool(source.label_names)
    names = names_of(numbers, source.label_names, split) if source.label_names else []
    return Classes(numbers, tuple(names)), complete


def _held_out(
    source: Source,
    known: Labels | None,
    split: str,
    counts: tuple[int | None, int | None],
    share: float,
    seed: int,
    notes: list[str],
) -> tuple[Numbers, Labels, Numbers, Labels]:
    """Return numbers and labels of training examples, and of those that are held out of them."""
    able = source.examples if known is None else int((known >= 0).sum())
    count = min(counts[1] or ALL, max(1, round(share * able)))
    examples, labels = choose(source, known, split, counts[0] and counts[0] + count)
    try:
        kept, out = hold_out(labels, count, seed)
    except UserError as error:
        raise UserError(f"the split {split!r}: {error}; {'; '.join(notes)}") from error
    notes.append(f"{len(out)} examples of the split {split!r} are held out to test on")
    return examples[kept], labels[kept], examples[out], labels[out]
