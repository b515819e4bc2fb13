"""Additional test sets of the robustness protocol, and the correct classes of their images.

`robustness.shifts` lists test sets as dicts with a `path`, an optional `name`, and a `kind`:

- `classes`: Class folders with the names of training classes, as in ImageNet-A, -R and -Sketch.
  Predictions are restricted to the classes of the test set.

- `numbered`: Class folders whose names are integer labels, as in ImageNet-V2.

- `real`: The ImageNet validation images with ReaL labels; `labels` is the path of `real.json`.

- `objectnet`: The folder of ObjectNet as distributed, with `images/` and `mappings/`.
  The labels of `real` and `objectnet` are those of ImageNet-1k; see `imagenet_numbering`.

- `imagenet_c`: The folder of ImageNet-C as distributed, with `CORRUPTION/SEVERITY/CLASS/` inside.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from can_jax.data.evaluation.pairs import Part, open_own, open_part
from can_jax.data.sources.folder import place_of_splits
from can_jax.data.sources.labels import Classes, Numbering
from can_jax.data.sources.registry import open_source
from can_jax.data.storage.splits import shown, some
from can_jax.evaluate.protocols.corruptions import CORRUPTIONS
from can_jax.evaluate.split_features import Split
from can_jax.evaluate.task import EvalContext, EvalResults
from can_jax.utils.errors import UserError
from can_jax.utils.files import read_json
from can_jax.utils.settings import Choice, Key, Table, Text

WHOLE = "train"  # The split name of a folder without subfolders for splits.
OBJECTNET_MAPPINGS = (
    "folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json",
    "pytorch_to_imagenet_2012_id.json", "imagenet_to_label_2012_v2",
)  # fmt: skip


class Judged(NamedTuple):
    """A test set whose images are not read yet, and the classes that count as correct for each
    image.

    Attributes:
        part: The examples, whose images are not read yet.
        accepted: A function that maps the `Split` of the test set to a boolean mask of the correct
            classes of each example.
        among: A boolean mask of the classes to which predictions are restricted.
    """

    part: Part
    accepted: Callable[[Split], Bool[np.ndarray, "examples classes"]]
    among: Bool[np.ndarray, " classes"]


Reads = dict[str, Callable[[int], Split]]  # By corruption: a function from severity to split.


def open_shift(
    context: EvalContext, shift: dict[str, Any], classes: Classes, results: EvalResults
) -> Judged | Reads:
    """Open one of the test sets in the setting `robustness.shifts`.

    Args:
        context: The evaluation context: configuration, model and data.
        shift: An entry of `robustness.shifts`, with the keys of `SHIFT`.
        classes: The classes that the classifier predicts.
        results: The results, to which warnings are added.

    Raises:
        UserError: The test set is missing, or its classes do not match the classifier's.
    """
    if shift["kind"] == "imagenet_c":
        return imagenet_c(context, shift, classes, results)
    return SHIFTS[shift["kind"]](context, shift, classes)


def folder_of(context: EvalContext, path: str) -> ConfigDict:
    """Return the ``data`` block of the evaluation, with a folder of images as the data source.

    Raises:
        UserError: The folder contains folders of splits; the test set of a shift is one folder.
    """
    parent, splits = place_of_splits(path)
    if names := sorted(itertools.chain(*splits.values())):
        raise UserError(
            f"config.robustness.shifts: {shown(parent)} has folders of splits: {some(names)}; give "
            "the path of one of them"
        )
    data = ConfigDict(context.data.to_dict())
    with data.ignore_type():
        data.update(source="folder", path=path, index=None, labels=None)
    return data


def path_of(shift: dict[str, Any], key: str = "path") -> str:
    """Return the path that an entry of `robustness.shifts` holds under ``key``.

    Raises:
        UserError: The key is not set, or the path does not exist.
    """
    path = shift.get(key)
    if path is None or not Path(path).exists():
        raise UserError(
            f"config.robustness.shifts: {shift.get('kind')}: {key}={path} does not exist"
        )
    return str(path)


def imagenet_c(
    context: EvalContext, shift: dict[str, Any], classes: Classes, results: EvalResults
) -> Reads:
    """Open the corruption folders of ImageNet-C, as its authors distribute them.

    Return, for each corruption, a function from a severity to the split of corrupted images.
    """
    root = Path(path_of(shift))
    # Some archives of ImageNet-C group the corruptions into four folders by kind.
    folders = {path.name: path for path in [*root.glob("*"), *root.glob("*/*")] if path.is_dir()}
    present = [name for name in CORRUPTIONS if name in folders]
    if not present:
        raise UserError(
            f"config.robustness.shifts: imagenet_c: {root} has no corruption folder such as "
            f"{next(iter(CORRUPTIONS))}"
        )
    parts: dict[tuple[str, int], Part] = {}
    incomplete: dict[str, list[str]] = {}  # the folders without some classes
    for name in present:
        for severity in context.config.robustness.severities:
            folder = folders[name] / str(severity)
            part, absent = same_classes(context, str(folder), classes)
            if absent:
                incomplete.setdefault(absent, []).append(f"{name}/{severity}")
            parts[name, severity] = part
    called = shift.get("name") or shift["kind"]
    for absent, of in incomplete.items():
        results.warn(f"{called}: {len(of)} folders, such as {of[0]}, have no image of {absent}")

    def reader(name: str) -> Callable[[int], Split]:
        return lambda severity: context.read(parts[name, severity])

    return {name: reader(name) for name in present}


def same_classes(context: EvalContext, path: str, classes: Classes) -> tuple[Part, str]:
    """Open a folder with class folders that have the names of training classes.

    Returns:
        The examples, and a phrase that names the missing classes; "" if no class is missing.

    Raises:
        UserError: The folder names do not match the classes of the training data.
    """
    data, count = folder_of(context, path), context.config.data.test_examples
    source = open_source(data, WHOLE)
    called = f"config.robustness.shifts: {path}"
    numeric = all(name.isdecimal() for name in source.label_names)
    if source.label_names and not classes.names and not numeric:
        raise UserError(
            f"{called} has class folders, but the training data has no class names with which to "
            "match them"
        )
    return open_part(data, WHOLE, source, count, classes, called)


def named_classes(context: EvalContext, shift: dict[str, Any], classes: Classes) -> Judged:
    """Open a test set with class folders that have the names of training classes.

    Predictions are restricted to the classes of the test set.
    """
    part, _ = same_classes(context, path_of(shift), classes)
    return judged(part, part.numbering.indices, len(classes))


def numbered_classes(context: EvalContext, shift: dict[str, Any], classes: Classes) -> Judged:
    """Open a test set whose class folders are named by integers.

    Classes are matched by the integers in the folder names, not by the order of the folders.
    Folders are sorted by name as strings, so 10 comes before 2. The integers in folder names are
    labels of the training data, or those of ImageNet-1k if the training classes are named by
    WordNet ids. If each folder has the name of a training class, classes are matched by name
    instead.

    Raises:
        UserError: A folder name is not the label of a training class, or two names are the same
            integer.
    """
    data = folder_of(context, path_of(shift))
    part = open_own(data, WHOLE, context.config.data.test_examples)
    folders = part.classes.names
    folder_labels = np.array([int(name) if name.isdecimal() else -1 for name in folders])
    if len(folder_labels) and folder_labels.min() >= 0 and set(folders) <= set(classes.names):
        return named_classes(context, shift, classes)
    numbering = imagenet_numbering(classes) or classes.numbering
    indices = numbering(folder_labels) if len(folder_labels) else np.array([-1])
    if indices.min() < 0:
        raise UserError(
            f"config.robustness.shifts: a folder name in {shift['path']} is not an integer label "
            f"of the training data; the largest label is {numbering.labels[-1]}"
        )
    if len(set(indices.tolist())) < len(indices):
        raise UserError(
            f"config.robustness.shifts: two folder names in {shift['path']} are the same integer"
        )
    translated = Numbering(part.numbering.labels, indices)
    return judged(
        dataclasses.replace(part, numbering=translated, classes=classes), indices, len(classes)
    )


def judged(part: Part, present: Int[np.ndarray, " present"], classes: int) -> Judged:
    """Return a test set in which every image has exactly one correct class.

    Args:
        part: The examples.
        present: The indices of the classes that occur in the test set. Predictions are restricted
            to these classes.
        classes: The number of classes that the classifier predicts.
    """
    among = np.zeros(classes, bool)
    among[present] = True
    return Judged(part, lambda split: np.arange(classes) == split.labels[:, None], among)


def real_labels(context: EvalContext, shift: dict[str, Any], classes: Classes) -> Judged:
    """Open the ImageNet validation images with their ReaL labels (arXiv 2006.07159).

    `real.json` holds a list of labels for each image, in the order of the numbers in the file
    names. Images with no training class among their labels are excluded from the accuracy.
    """
    labels = read_json(epath.Path(path_of(shift, "labels")), of=list)
    numbering = known_numbering(classes, "real")
    data, count = folder_of(context, path_of(shift)), context.config.data.test_examples
    part = open_own(data, WHOLE, count, labeled=False)

    def accepted(split: Split) -> Bool[np.ndarray, "examples classes"]:
        right = np.zeros((len(split), len(classes)), bool)
        for row, index in enumerate(split.indices):
            name = split.source.describe(int(index))
            match = re.search(r"(\d{8})\.\w+", name)
            if not match or not 1 <= int(match[1]) <= len(labels):
                raise UserError(
                    f"config.robustness.shifts: real: {name} has no eight-digit image number from "
                    f"1 to {len(labels)}"
                )
            right[row, known_indices(numbering, labels[int(match[1]) - 1])] = True
        return right

    return Judged(part, accepted, np.ones(len(classes), bool))


def known_indices(numbering: Numbering, labels: list[int]) -> Int[np.ndarray, " known"]:
    """Return the class indices of ImageNet labels; drop labels that are not training classes."""
    indices = numbering(np.array(labels, np.int64))
    return indices[indices >= 0]


@functools.cache
def imagenet_labels() -> dict[str, int]:
    """Return the label from 0 to 999 of each class of ImageNet-1k, by WordNet id."""
    names = read_json(epath.Path(__file__).parent / "imagenet_1k.json", of=list)
    return {name: label for label, name in enumerate(names)}


def imagenet_numbering(classes: Classes) -> Numbering | None:
    """Return the translation of ImageNet-1k labels to class indices, or None if it is unknown.

    In a data set of class folders, labels start at 0 and may differ from those of ImageNet-1k.
    Classes with names are therefore matched by WordNet id or, if all names are integers, by
    integer. If the classes have no names, their labels are assumed to be those of ImageNet-1k. The
    labels of 1,000 classes with other names are also assumed to be those of ImageNet-1k if the
    names are not sorted. Names that come from class folders are always sorted.
    """
    if not classes.names:
        return classes.numbering
    if all(name.isdecimal() for name in classes.names):
        labels = np.array([int(name) for name in classes.names], np.int64)
    elif imagenet_labels().keys() >= set(classes.names):
        labels = np.array([imagenet_labels()[name] for name in classes.names], np.int64)
    else:
        names, every = list(classes.names), np.arange(len(imagenet_labels()))
        official = np.array_equal(classes.labels, every) and names != sorted(names)
        return classes.numbering if official else None
    order = np.argsort(labels)
    return Numbering(labels[order], order)


def known_numbering(classes: Classes, kind: str) -> Numbering:
    """Return the result of `imagenet_numbering`; ``kind`` names the test set in the error message.

    Raises:
        UserError: The training classes cannot be matched to the labels of ImageNet-1k.
    """
    numbering = imagenet_numbering(classes)
    if numbering is None:
        others = [name for name in classes.names if name not in imagenet_labels()]
        other = next((name for name in others if not name.isdecimal()), None)
        reason = (
            "some training classes are named by WordNet ids and others by integers"
            if other is None
            else f"the training class {other!r} is named neither by a WordNet id nor by an integer "
            "label of ImageNet-1k, as this test set requires"
        )
        raise UserError(
            f"config.robustness.shifts: {kind}: {reason}; rename the class folders of the training "
            "data to WordNet ids"
        )
    return numbering


def objectnet(context: EvalContext, shift: dict[str, Any], classes: Classes) -> Judged:
    """Open ObjectNet (Barbu et al., 2019) with its published mapping to ImageNet classes.

    Images of objects without an ImageNet class are excluded from the accuracy. As in the authors'
    code, predictions are not restricted to the classes in ObjectNet.
    """
    root, numbering = epath.Path(path_of(shift)), known_numbering(classes, "objectnet")
    files = [root / "mappings" / name for name in OBJECTNET_MAPPINGS]
    for file in files:
        if not file.exists():
            raise UserError(f"config.robustness.shifts: objectnet: {file} does not exist")
    words_of_folder, imagenet_words, line_of_label = map(read_json, files[:3])
    lines = files[3].read_text().splitlines()
    label_of_line = {int(line): int(label) for label, line in line_of_label.items()}
    by_words = {
        line.strip(): label_of_line[i] for i, line in enumerate(lines) if i in label_of_line
    }
    part = open_own(
        folder_of(context, str(root / "images")), WHOLE, context.config.data.test_examples
    )
    accepted = np.zeros((len(part.classes), len(classes)), bool)
    for folder, name in enumerate(part.classes.names):
        labels = imagenet_words.get(words_of_folder.get(name), "").split("; ")
        class_labels = [by_words[label] for label in labels if label in by_words]
        accepted[folder, known_indices(numbering, class_labels)] = True
    return Judged(part, lambda split: accepted[split.labels], np.ones(len(classes), bool))


SHIFTS: dict[str, Callable[[EvalContext, dict[str, Any], Classes], Judged]] = {
    "classes": named_classes,
    "numbered": numbered_classes,
    "real": real_labels,
    "objectnet": objectnet,
}

# The keys of an entry of `robustness.shifts`.
SHIFT: Table = {
    "kind": Key(
        "classes", Choice((*SHIFTS, "imagenet_c")),
        "The kind of test set, which determines how its classes match the training classes.",
    ),
    "path": Key(None, Text(), "The folder of the test set."),
    "name": Key(None, Text(), "The test set's name in the results; by default its `kind`."),
    "labels": Key(None, Text(), "The path of the ReaL label file; only for the kind `real`."),
}  # fmt: skip
