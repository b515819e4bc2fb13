"""A training and a test split that go together: opened, matched by class, and kept apart.

The probe of a run and every protocol of an evaluation open their examples here.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from can_jax.data.evaluation.chosen import ALL, Chosen, choose, choose_and_hold_out, classes_of
from can_jax.data.evaluation.examples import spread
from can_jax.data.evaluation.overlap import copies, same_examples
from can_jax.data.sources.base import ArraySource, Source
from can_jax.data.sources.labels import (
    Classes,
    LabeledSource,
    Labels,
    Numbering,
    Numbers,
    distinct,
    has_labels,
    without_known_class,
)
from can_jax.data.sources.registry import available_splits, open_source
from can_jax.data.storage.splits import SPELLINGS, standard
from can_jax.utils.errors import UserError

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
    name: str = data.split
    other: Source | None = source
    if tuple(splits) != (data.split,):
        name, other = open_test(data, splits, notes=notes, names=source.label_names)
    same = other is not None and (name == data.split or same_examples(source, other))
    if same and not chosen:
        notes.append(f"the split {name!r} is the training split {data.split!r} itself")
    held = other is None or (same and not chosen)
    if other is None or held:
        if not 0 < share < 1:  # of a run of an older version
            raise UserError(
                f"there is no split to test on but {data.split!r}, and config.probe.held_out="
                f"{share} is no share of it: set config.data.held_out or config.data.test_split"
            )
        learned, tested = choose_and_hold_out(source, data.split, counts, share, seed, notes)
    else:
        learned, tested = choose(source, data.split, counts[0]), choose(other, name, counts[1])
    classes, numbering = _match(learned, tested, counts[0], held, notes)
    _compare_images(learned, tested, same, held, notes)
    if len(classes) == 1:
        notes.append(
            f"{learned.called} has a single class, {classes.called[0]!r}: accuracies say nothing; "
            "config.data.path should be the folder that contains the class folders or the splits"
        )
    parts = (
        _part(learned, data, classes.numbering, classes),
        _part(tested, data, numbering, classes),
    )
    return Pair(*parts, classes, tuple(notes))


def _match(
    learned: Chosen, tested: Chosen, count: int | None, held: bool, notes: list[str]
) -> tuple[Classes, Numbering]:
    """Return the classes of training examples, and the translation of the test examples' labels.

    Args:
        learned, tested: The training and the test examples.
        count: Training examples that were asked for; None for all.
        held: The test examples are held out of the training examples.
        notes: Get what a person has to know of the classes.
    """
    classes, complete = classes_of(learned, count)
    there = tested.distinct_labels
    if not complete:  # other classes may be among the records that were not looked at
        classes = Classes(np.union1d(classes.numbers, there))
    names, other_names = learned.source.label_names, tested.source.label_names
    numbering = classes.match(there, other_names, tested.called, learned.called)
    if complete and not held and (absent := classes.absent(numbering(there))):
        notes.append(f"{tested.called} has no image of {absent}")
    if alike := classes.alike():
        notes.append(f"{learned.called} has two classes that differ in spelling only: {alike}")
    if absent := classes.absent(classes.numbering(distinct(learned.labels))):
        notes.append(f"no training example is chosen of {absent}")
    if bool(names) != bool(other_names):
        nameless = tested.called if names else learned.called
        notes.append(f"{nameless} has no label_names, so classes are matched by number")
    return classes, numbering


def _compare_images(
    learned: Chosen, tested: Chosen, same: bool, held: bool, notes: list[str]
) -> None:
    """Note which test images are training images, too.

    Args:
        learned, tested: The training and the test examples.
        same: Both are of the same files.
        held: The test examples are held out of the training examples.
        notes: Get a sentence on it.
    """
    if same and not held:
        notes.append(
            f"{learned.called} and {tested.called} are the same examples: accuracies say nothing"
        )
        return
    found, compared = copies(learned.source, learned.examples, tested.source, tested.examples)
    if found:
        where = "among the other examples" if held else f"in {learned.called}"
        notes.append(
            f"{found} of {compared} examples of {tested.called} that were compared are also "
            f"{where}, byte for byte: accuracies say less than they seem to"
        )


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
    chosen = choose(source, split, count)
    there = chosen.distinct_labels
    numbering = classes.match(there, source.label_names, called, "the classifier's training data")
    return _part(chosen, data, numbering, classes), classes.absent(numbering(there))


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
    chosen = choose(source, split, count)
    classes, _ = classes_of(chosen, count)
    return _part(chosen, data, classes.numbering, classes)


def _part(chosen: Chosen, data: ConfigDict, numbering: Numbering, classes: Classes) -> Part:
    """Return chosen examples with the classes that they are labeled by."""
    return Part(
        chosen.name, data, chosen.source, chosen.examples, chosen.labels, numbering, classes
    )
