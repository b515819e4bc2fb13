"""Test sets of their own, and the classes that are right for each of their images.

`robustness.shifts` lists test sets, dicts with a `path`, perhaps a `name`, and a `kind`:

- `classes`: class folders named as those of training; where some classes are missing, the
  classifier chooses among those that are there. ImageNet-A, -R and -Sketch are of this kind.
- `numbered`: class folders named by the class's number, as ImageNet-V2 has them.
- `real`: the validation images, and in `labels` the file `real.json`, whose labels are judged by.
- `objectnet`: a folder with `images/` and `mappings/`, as ObjectNet is distributed.
- `imagenet_c`: folders `CORRUPTION/SEVERITY/CLASS/`, as ImageNet-C is distributed.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from can_jax.data.evaluation.pairs import Part, open_own, open_part
from can_jax.data.sources.labels import Classes, Numbering
from can_jax.data.sources.registry import open_source
from can_jax.evaluate.protocols.corruptions import CORRUPTIONS
from can_jax.evaluate.split_features import Split
from can_jax.evaluate.task import Findings, Task
from can_jax.utils.errors import UserError

WHOLE = "train"  # the split of a folder that has none


class Judged(NamedTuple):
    """A test set of its own, not read yet, and what a classifier may answer for it.

    Attributes:
        part: the examples.
        accepted: of a split that was read, which classes are right for each example.
        among: the classes that may be chosen.
    """

    part: Part
    accepted: Callable[[Split], Bool[np.ndarray, "examples classes"]]
    among: Bool[np.ndarray, " classes"]


Reads = dict[str, Callable[[int], Split]]  # of each corruption, a split at a severity


def open_shift(
    task: Task, shift: dict[str, Any], classes: Classes, findings: Findings
) -> Judged | Reads:
    """Open a test set of `robustness.shifts`.

    Raises:
        UserError: it is not there, or of other classes.
    """
    if shift["kind"] == "imagenet_c":
        return distributed(task, shift, classes, findings)
    return SHIFTS[shift["kind"]](task, shift, classes)


def folder_of(task: Task, path: str) -> ConfigDict:
    """A data block for a folder of images."""
    data = ConfigDict(task.data.to_dict())
    with data.ignore_type():
        data.update(source="folder", path=path, index=None)
    return data


def path_of(shift: dict[str, Any], key: str = "path") -> str:
    """A path that a shift names.

    Raises:
        UserError: it does not, or there is nothing.
    """
    place = shift.get(key)
    if place is None or not Path(place).exists():
        raise UserError(
            f"config.robustness.shifts: {shift.get('kind')}: {key}={place} is not there"
        )
    return str(place)


def distributed(task: Task, shift: dict[str, Any], classes: Classes, findings: Findings) -> Reads:
    """ImageNet-C as it is distributed."""
    root = Path(path_of(shift))
    # In some of its archives the corruptions lie in four folders by kind.
    places = {path.name: path for path in [*root.glob("*"), *root.glob("*/*")] if path.is_dir()}
    found = [name for name in CORRUPTIONS if name in places]
    if not found:
        raise UserError(f"config.robustness.shifts: imagenet_c: {root} holds none of its folders")
    parts: dict[tuple[str, int], Part] = {}
    for name in found:
        for severity in task.config.robustness.severities:
            place = places[name] / str(severity)
            part, absent = same_classes(task, str(place), classes)
            if absent:
                findings.warn(f"{place} has no image of {absent}")
            parts[name, severity] = part

    def reader(name: str) -> Callable[[int], Split]:
        return lambda severity: task.read(parts[name, severity])

    return {name: reader(name) for name in found}


def same_classes(task: Task, path: str, classes: Classes) -> tuple[Part, str]:
    """Open a folder whose class folders are named as in training; name those that are missing."""
    data, count = folder_of(task, path), task.config.data.test_examples
    source = open_source(data, WHOLE)
    called = f"config.robustness.shifts: {path}"
    numeric = all(name.isdecimal() for name in source.label_names)
    if source.label_names and not classes.names and not numeric:
        raise UserError(
            f"{called} has class folders, but the classes of the training data have no names"
        )
    return open_part(data, WHOLE, source, count, classes, called)


def named_classes(task: Task, shift: dict[str, Any], classes: Classes) -> Judged:
    """Class folders are named as in training; the choice is among those that are there."""
    part, _ = same_classes(task, path_of(shift), classes)
    return judged(part, part.numbering.places, len(classes))


def numbered_classes(task: Task, shift: dict[str, Any], classes: Classes) -> Judged:
    """Class folders are named by numbers, which are not in their order as words: 10 is before 2.

    A number is the label of a class in the training data, unless a class there has it as its name.
    """
    data = folder_of(task, path_of(shift))
    part = open_own(data, WHOLE, task.config.data.test_examples)
    folders = part.classes.names
    numbers = np.array([int(name) if name.isdecimal() else -1 for name in folders])
    if len(numbers) and numbers.min() >= 0 and set(folders) <= set(classes.names):
        return named_classes(task, shift, classes)
    places = classes.numbering(numbers) if len(numbers) else np.array([-1])
    if places.min() < 0:
        raise UserError(
            f"config.robustness.shifts: the folders of {shift['path']} are no numbers below "
            f"{classes.numbers[-1] + 1} that are labels of the training data"
        )
    if len(set(places.tolist())) < len(places):
        raise UserError(
            f"config.robustness.shifts: two folders of {shift['path']} are the same number"
        )
    translated = Numbering(part.numbering.labels, places)
    return judged(
        dataclasses.replace(part, numbering=translated, classes=classes), places, len(classes)
    )


def judged(part: Part, there: Int[np.ndarray, " present"], classes: int) -> Judged:
    """A test set whose every image has one right class, among those that are there."""
    among = np.zeros(classes, bool)
    among[there] = True
    return Judged(part, lambda split: np.arange(classes) == split.labels[:, None], among)


def real_labels(task: Task, shift: dict[str, Any], classes: Classes) -> Judged:
    """The validation images with all the labels that they deserve (arXiv 2006.07159): `real.json`
    is a list of lists, in the order of the images' numbers. What has none is not judged."""
    labels = json.loads(Path(path_of(shift, "labels")).read_text())
    data, count = folder_of(task, path_of(shift)), task.config.data.test_examples
    part = open_own(data, WHOLE, count, labeled=False)

    def accepted(split: Split) -> Bool[np.ndarray, "examples classes"]:
        right = np.zeros((len(split), len(classes)), bool)
        for row, number in enumerate(split.numbers):
            name = split.source.describe(int(number))
            found = re.search(r"(\d{8})\.\w+", name)
            if not found or not 1 <= int(found[1]) <= len(labels):
                raise UserError(f"config.robustness.shifts: real: {name} is no numbered image")
            right[row, places_of(classes, labels[int(found[1]) - 1])] = True
        return right

    return Judged(part, accepted, np.ones(len(classes), bool))


def places_of(classes: Classes, numbers: list[int]) -> Int[np.ndarray, " known"]:
    """The places of ImageNet's class numbers, without those that training does not have."""
    places = classes.numbering(np.array(numbers, np.int64))
    return places[places >= 0]


def objectnet(task: Task, shift: dict[str, Any], classes: Classes) -> Judged:
    """ObjectNet (Barbu et al., 2019): its mappings say which classes of ImageNet its objects are;
    others are not judged. The choice is among all classes, as in its authors' code."""
    root = Path(path_of(shift))
    tables = {}
    for name in ("folder_to_objectnet_label", "objectnet_to_imagenet_1k"):
        place = root / "mappings" / f"{name}.json"
        if not place.exists():
            raise UserError(f"config.robustness.shifts: objectnet: {place} is not there")
        tables[name] = json.loads(place.read_text())
    order = json.loads((root / "mappings" / "pytorch_to_imagenet_2012_id.json").read_text())
    lines = (root / "mappings" / "imagenet_to_label_2012_v2").read_text().splitlines()
    number_of = {int(theirs): int(ours) for ours, theirs in order.items()}
    by_words = {line.strip(): number_of[i] for i, line in enumerate(lines) if i in number_of}
    part = open_own(folder_of(task, str(root / "images")), WHOLE, task.config.data.test_examples)
    of_folder = np.zeros((len(part.classes), len(classes)), bool)
    for folder, name in enumerate(part.classes.names):
        words = tables["folder_to_objectnet_label"].get(name)
        labels = tables["objectnet_to_imagenet_1k"].get(words, "").split("; ")
        numbers = [by_words[label] for label in labels if label in by_words]
        of_folder[folder, places_of(classes, numbers)] = True
    return Judged(part, lambda split: of_folder[split.labels], np.ones(len(classes), bool))


SHIFTS: dict[str, Callable[[Task, dict[str, Any], Classes], Judged]] = {
    "classes": named_classes,
    "numbered": numbered_classes,
    "real": real_labels,
    "objectnet": objectnet,
}
