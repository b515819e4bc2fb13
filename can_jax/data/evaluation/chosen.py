"""Labeled examples that are chosen of a source, and the classes that a source has."""

from typing import NamedTuple

import numpy as np

from can_jax.data.evaluation.examples import spread
from can_jax.data.evaluation.overlap import hold_out
from can_jax.data.sources.base import Source
from can_jax.data.sources.labels import (
    Classes,
    Labels,
    Numbers,
    distinct,
    known_labels,
    labels_of,
    names_of,
)
from can_jax.utils.errors import UserError

ALL = 2**62


class Chosen(NamedTuple):
    """Labeled examples of a split.

    Attributes:
        name: The split.
        source: Of the images.
        known: The labels of all examples of the source, where they are known without reading it.
        examples: Numbers of the chosen examples in the source.
        labels: The source's own label of each.
    """

    name: str
    source: Source
    known: Labels | None
    examples: Numbers
    labels: Labels

    @property
    def called(self) -> str:
        """What messages call the split."""
        return f"the split {self.name!r}"

    @property
    def distinct_labels(self) -> Labels:
        """The labels that occur in the source, as far as is known, ascending."""
        return distinct(self.labels if self.known is None else self.known)


def choose(source: Source, split: str, count: int | None) -> Chosen:
    """Choose labeled examples, evenly spread over a source.

    Args:
        source: Of the examples.
        split: Its name.
        count: Of examples; None for all.

    Raises:
        UserError: There is none.
    """
    known = known_labels(source)
    if known is not None:
        able = np.flatnonzero(known >= 0)
        examples = able[spread(len(able), count or ALL)]
    else:
        examples = spread(source.examples, count or ALL)
    labels = labels_of(source, examples, known)
    examples, labels = examples[labels >= 0], labels[labels >= 0]
    if not len(examples):
        raise UserError(f"config.data: no labelled image in the split {split!r}")
    return Chosen(split, source, known, examples, labels)


def choose_and_hold_out(
    source: Source,
    split: str,
    counts: tuple[int | None, int | None],
    share: float,
    seed: int,
    notes: list[str],
) -> tuple[Chosen, Chosen]:
    """Choose training examples, and others of the same split to test on.

    Args:
        source: Of the examples.
        split: Its name.
        counts: Training and test examples to choose; None for all.
        share: Of the labeled examples, to hold out where no number is given.
        seed: Of the examples that are held out.
        notes: Why examples are held out; gets how many are.

    Raises:
        UserError: No class has two examples.
    """
    known = known_labels(source)
    able = source.examples if known is None else int((known >= 0).sum())
    count = min(counts[1] or ALL, max(1, round(share * able)))
    both = choose(source, split, counts[0] and counts[0] + count)
    try:
        kept, out = hold_out(both.labels, count, seed)
    except UserError as error:
        raise UserError(f"{both.called}: {error}; {'; '.join(notes)}") from error
    notes.append(f"{len(out)} examples of {both.called} are held out to test on")
    learned, tested = (
        both._replace(examples=both.examples[places], labels=both.labels[places])
        for places in (kept, out)
    )
    return learned, tested._replace(name=f"{split} (held out)", known=None)


def classes_of(chosen: Chosen, count: int | None) -> tuple[Classes, bool]:
    """Return the classes of a training source, and whether they are known to be all of them.

    Args:
        chosen: The training examples.
        count: How many were asked for; None for all.

    Raises:
        UserError: A label is beyond the names.
    """
    label_names = chosen.source.label_names
    complete = True
    if chosen.known is not None:
        numbers = distinct(chosen.known)
    else:
        numbers = distinct(chosen.labels)
        if count is not None:  # a few of many records: the names are all that is known of the rest
            names_of(numbers if label_names else numbers[:0], label_names, chosen.called)
            complete = bool(label_names)
            numbers = np.arange(len(label_names)) if label_names else numbers
    names = names_of(numbers, label_names, chosen.called) if label_names else []
    return Classes(numbers, tuple(names)), complete
