"""Pairs of a training and a test split, with matched classes and a check for duplicate images.

The kNN probe during training and the evaluation protocols select their examples with this module.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from can_jax.data.evaluation.chosen import ALL, Chosen, choose, choose_and_hold_out, classes_of
from can_jax.data.evaluation.examples import spread
from can_jax.data.evaluation.overlap import copies
from can_jax.data.sources.base import Source
from can_jax.data.sources.labels import (
    Classes,
    Labels,
    Numbering,
    Numbers,
    distinct,
    has_labels,
    without_known_class,
)
from can_jax.data.sources.registry import available_splits, open_source, without_index
from can_jax.data.storage.splits import SPELLINGS, standard
from can_jax.utils.errors import UserError

TEST_SPLITS = ("test", "val")  # tried in this order, in any spelling, if the user names none


@dataclasses.dataclass(frozen=True)
class Part:
    """Examples selected from a split, with their labels; the images are not read yet.

    Attributes:
        name: The name of the split, as messages and results show it.
        data: The config block from which the source was opened.
        source: The data source from which to read the images.
        examples: The indices of the selected examples in the source.
        labels: The label of each selected example, as numbered in the source.
        numbering: The callable that maps the source's labels to class indices.
        classes: The classes, in the order of the class indices.
    """

    name: str
    data: ConfigDict
    source: Source
    examples: Numbers
    labels: Labels
    numbering: Numbering
    classes: Classes

    def labeled(self) -> Source:
        """Return a source that holds only the selected examples, labeled with class indices."""
        labels = self.numbering(self.labels)
        return self.source.selection(self.examples, labels, self.classes.names)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A training set, and a test set whose classes are matched with those of the training set.

    Attributes:
        train, test: The selected training and test examples.
        classes: The classes of the training set.
        notes: Remarks for the user about the data, such as duplicates or missing classes.
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
    """Select training and test examples, and match the classes of the two splits.

    Examples of the training split are held out for testing if no test split qualifies; see
    `open_test`. Training examples are also held out if the test split consists of the training
    files, unless ``chosen`` is True.

    Args:
        data: The config block that names the data set and its training split.
        splits: The names of the test splits to try, in order of preference.
        chosen: Whether the user chose the test split. A chosen test split is used even if it
            consists of the training files.
        counts: The maximum numbers of training and test examples to select, evenly spaced over
            their splits; None for all.
        share: The maximum fraction of the training split to hold out; see `choose_and_hold_out`.
        seed: The seed that selects the held-out examples.
        train: The source of the training split if it is open already; None to open it.

    Raises:
        UserError: A split does not exist, has no labels, or has classes that the training split
            lacks. UserError is also raised if examples must be held out but cannot be.
    """
    notes: list[str] = []
    source = train or open_source(data, data.split)
    name: str = data.split
    other: Source | None = source
    if tuple(splits) != (data.split,):
        name, other = open_test(data, splits, notes=notes, names=source.label_names)
    same = other is not None and (name == data.split or source.same_files(other))
    if same and not chosen:
        notes.append(f"the split {name!r} is the training split {data.split!r} itself")
    held = other is None or (same and not chosen)
    if other is None or held:
        if not 0 < share < 1:  # an older version of the package allowed such values
            raise UserError(
                f"no test split can be used, and the run's config.probe.held_out={share} is not a "
                f"valid fraction of {data.split!r} to hold out: set config.data.held_out or "
                "config.data.test_split"
            )
        learned, tested = choose_and_hold_out(source, data.split, counts, share, seed, notes)
    else:
        learned, tested = choose(source, data.split, counts[0]), choose(other, name, counts[1])
    classes, numbering = _match(learned, tested, counts[0], held, notes)
    _compare_images(learned, tested, same, held, notes)
    if len(classes) == 1:
        notes.append(
            f"{learned.display_name} has a single class, {classes.display_names[0]!r}: "
            "accuracies are meaningless; config.data.path should be the folder that contains the "
            "class folders or the splits"
        )
    parts = (
        _part(learned, data, classes.numbering, classes),
        _part(tested, data, numbering, classes),
    )
    return Pair(*parts, classes, tuple(notes))


def _match(
    learned: Chosen, tested: Chosen, count: int | None, held: bool, notes: list[str]
) -> tuple[Classes, Numbering]:
    """Return the classes of the training set, and the callable that maps test labels to class
    indices.

    Args:
        learned, tested: The training and the test examples.
        count: The number of training examples that were requested; None if all examples were
            requested.
        held: Whether the test examples were held out of the training split.
        notes: The list of notes for the user, to which notes about the classes are appended.
    """
    classes, complete = classes_of(learned, count)
    test_labels = tested.distinct_labels
    if not complete:  # the records not read may hold other classes
        classes = Classes(np.union1d(classes.labels, test_labels))
    names, other_names = learned.source.label_names, tested.source.label_names
    numbering = classes.match(test_labels, other_names, tested.display_name, learned.display_name)
    if complete and not held and (absent := classes.absent(numbering(test_labels))):
        notes.append(f"{tested.display_name} has no image of {absent}")
    if alike := classes.alike():
        notes.append(
            f"{learned.display_name} has two classes that differ only in spelling: {alike}"
        )
    if absent := classes.absent(classes.numbering(distinct(learned.labels))):
        notes.append(f"no training example of {absent} is selected")
    if bool(names) != bool(other_names):
        nameless = tested.display_name if names else learned.display_name
        notes.append(f"{nameless} has no class names, so classes are matched by number")
    return classes, numbering


def _compare_images(
    learned: Chosen, tested: Chosen, same: bool, held: bool, notes: list[str]
) -> None:
    """Append a note if test images are also training images.

    Args:
        learned, tested: The training and the test examples.
        same: Whether training and test examples are read from the same files.
        held: Whether the test examples were held out of the training split.
        notes: The list of notes for the user, to which a note may be appended.
    """
    if same and not held:
        notes.append(
            f"{learned.display_name} and {tested.display_name} are the same examples: "
            "accuracies are meaningless"
        )
        return
    duplicates, compared = copies(learned.source, learned.examples, tested.source, tested.examples)
    if duplicates:
        where = "among the examples kept for training" if held else f"in {learned.display_name}"
        notes.append(
            f"{duplicates} of {compared} compared examples of {tested.display_name} are also "
            f"{where}, byte for byte: accuracies are too high"
        )


def open_test(
    data: ConfigDict, splits: Sequence[str], *, notes: list[str], names: Sequence[str] = ()
) -> tuple[str, Source | None]:
    """Return the name and source of the first listed split that has labels.

    Args:
        data: The config block that names the data set.
        splits: The names of the test splits to try, in order of preference. If only one split is
            listed, this split must exist, and is returned even if it has no labels.
        notes: The list of notes for the user, to which the reasons for skipping splits are
            appended.
        names: The class names of the training split; empty if unknown. A test split without any
            class of the training split is skipped, for example if all of its images are in
            `unknown/`.

    Returns:
        The name of the split and its source. If no listed split qualifies, the result is the first
        listed name and None.

    Raises:
        UserError: The only listed split does not exist, or a source cannot be opened.
    """
    if len(splits) == 1:
        return splits[0], _open(data, splits[0])
    ambiguous: dict[str, str] = {}
    available = available_splits(data, ambiguous)
    reasons: list[str] = []
    for name in splits:
        if standard(name) in SPELLINGS and standard(name) not in available:
            reasons.append(ambiguous.get(standard(name), f"there is no split {name!r}"))
            continue
        source = _open(data, name)
        if not has_labels(source):
            reasons.append(f"the split {name!r} has no labels")
        elif strange := without_known_class(source, names):
            reasons.append(f"the split {name!r} has no class of the training split, only {strange}")
        else:
            if reasons:
                notes.append(f"{'; '.join(reasons)}; {name!r} is used instead")
            return name, source
    notes.append("; ".join(reasons))
    return splits[0], None


def _open(data: ConfigDict, split: str) -> Source:
    """Open a split. ``data.index`` is the index of the training split, so it is not used for other
    splits."""
    return open_source(data if split == data.split else without_index(data), split)


def open_part(
    data: ConfigDict, split: str, source: Source, count: int | None, classes: Classes, called: str
) -> tuple[Part, str]:
    """Select examples of one split to test a classifier whose classes are known.

    Args:
        data: The config block from which the source was opened.
        split: The name of the split, such as `test`.
        source: The data source from which to read the images.
        count: The maximum number of examples to select, evenly spaced over the split; None for all.
        classes: The classes that the classifier predicts.
        called: A phrase that names the split in messages.

    Returns:
        The selected examples, and a phrase that names the classes without examples. The phrase is
        for use in messages, and is "" if every class has an example.

    Raises:
        UserError: The split has no labels, or has classes that the classifier does not predict.
    """
    chosen = choose(source, split, count)
    split_labels = chosen.distinct_labels
    numbering = classes.match(
        split_labels, source.label_names, called, "the classifier's training data"
    )
    return _part(chosen, data, numbering, classes), classes.absent(numbering(split_labels))


def open_own(data: ConfigDict, split: str, count: int | None, *, labeled: bool = True) -> Part:
    """Select examples of a split, and number their classes independently of any other split.

    Args:
        data: The config block that names the data set.
        split: The name of the split, such as `test`.
        count: The maximum number of examples to select, evenly spaced over the split; None for all.
        labeled: True to select only examples with a label; False to ignore all labels.

    Raises:
        UserError: The split does not exist, or ``labeled`` is True and the split has no labels.
    """
    source = open_source(data, split)
    if not labeled:
        examples = spread(source.examples, count or ALL)
        labels = np.full(len(examples), -1, np.int32)
        nothing = Classes(labels[:0])
        return Part(split, data, source, examples, labels, nothing.numbering, nothing)
    chosen = choose(source, split, count)
    classes, _ = classes_of(chosen, count)
    return _part(chosen, data, classes.numbering, classes)


def _part(chosen: Chosen, data: ConfigDict, numbering: Numbering, classes: Classes) -> Part:
    """Return a `Part` that consists of the selected examples and the given classes."""
    return Part(
        chosen.name, data, chosen.source, chosen.examples, chosen.labels, numbering, classes
    )
