"""Selection of labeled examples from a data source, and the classes of that source."""

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

ALL = 2**62  # a count that selects every example


class Chosen(NamedTuple):
    """Labeled examples selected from a split.

    Attributes:
        name: The name of the split, such as `train`.
        source: The data source from which to read the images.
        source_labels: The labels of all examples of the source; None if the labels are stored only
            in the source's records, or if the selected examples are held out for testing.
        examples: The indices of the selected examples in the source.
        labels: The label of each selected example, as numbered in the source.
    """

    name: str
    source: Source
    source_labels: Labels | None
    examples: Numbers
    labels: Labels

    @property
    def display_name(self) -> str:
        """The quoted name of the split, as messages show it."""
        return f"the split {self.name!r}"

    @property
    def distinct_labels(self) -> Labels:
        """The distinct labels in ascending order: those in ``source_labels`` or, if that is None,
        those in ``labels``."""
        return distinct(self.labels if self.source_labels is None else self.source_labels)


def choose(source: Source, split: str, count: int | None) -> Chosen:
    """Select labeled examples, spread evenly over a source.

    Args:
        source: The data source from which to select examples.
        split: The name of the split, such as `train`.
        count: The maximum number of examples to select; None for all.

    Raises:
        UserError: None of the selected examples has a label.
    """
    all_labels = known_labels(source)
    if all_labels is not None:
        labeled = np.flatnonzero(all_labels >= 0)
        examples = labeled[spread(len(labeled), count or ALL)]
    else:
        examples = spread(source.examples, count or ALL)
    labels = labels_of(source, examples, all_labels)
    examples, labels = examples[labels >= 0], labels[labels >= 0]
    if not len(examples):
        raise UserError(f"config.data: no labeled image in the split {split!r}")
    return Chosen(split, source, all_labels, examples, labels)


def choose_and_hold_out(
    source: Source,
    split: str,
    counts: tuple[int | None, int | None],
    share: float,
    seed: int,
    notes: list[str],
) -> tuple[Chosen, Chosen]:
    """Select training examples, and hold out examples of the same split for testing.

    Args:
        source: The data source from which to select examples.
        split: The name of the split, such as `train`.
        counts: The maximum numbers of training and test examples to select; None for no maximum.
        share: The maximum fraction of the labeled examples to hold out, above 0 and below 1. At
            least one example is held out.
        seed: The seed that selects the held-out examples.
        notes: The list of notes for the user. On entry, ``notes`` must contain the reason for
            holding out examples, which error messages quote. A note with the number of held-out
            examples is appended.

    Raises:
        UserError: No class has two labeled examples, or the source has no labels.
    """
    all_labels = known_labels(source)
    labeled = source.examples if all_labels is None else int((all_labels >= 0).sum())
    count = min(counts[1] or ALL, max(1, round(share * labeled)))
    both = choose(source, split, counts[0] and counts[0] + count)
    try:
        kept, out = hold_out(both.labels, count, seed)
    except UserError as error:
        raise UserError(f"{both.display_name}: {error}; {'; '.join(notes)}") from error
    kept = kept[spread(len(kept), counts[0] or ALL)]  # rare classes can leave fewer to hold out
    notes.append(f"{len(out)} examples of {both.display_name} are held out for testing")
    learned, tested = (
        both._replace(examples=both.examples[rows], labels=both.labels[rows])
        for rows in (kept, out)
    )
    return learned, tested._replace(name=f"{split} (held out)", source_labels=None)


def classes_of(chosen: Chosen, count: int | None) -> tuple[Classes, bool]:
    """Return the classes of a source, and whether this list of classes is known to be complete.

    Args:
        chosen: The examples selected from the source.
        count: The number of examples that were requested; None if all examples were requested.

    Raises:
        UserError: A label is not a valid index into the list of class names.
    """
    label_names = chosen.source.label_names
    class_labels = chosen.distinct_labels
    names = names_of(class_labels, label_names, chosen.display_name) if label_names else []
    if chosen.source_labels is not None or count is None:
        return Classes(class_labels, tuple(names)), True
    if label_names:  # the records not read may hold any named class
        return Classes(np.arange(len(label_names)), tuple(label_names)), True
    return Classes(class_labels), False
