"""How a classifier fares where images are not like those it learned from.

`robustness.shifts` lists test sets, dicts with a `path`, perhaps a `name`, and a `kind`:

- `classes`: class folders named as those of training; where some classes are missing, the
  classifier chooses among those that are there. ImageNet-A, -R and -Sketch are of this kind.
- `numbered`: class folders named by the class's number, as ImageNet-V2 has them.
- `real`: the validation images, and in `labels` the file `real.json`, whose labels are judged by.
- `objectnet`: a folder with `images/` and `mappings/`, as ObjectNet is distributed.
- `imagenet_c`: folders `CORRUPTION/SEVERITY/CLASS/`, as ImageNet-C is distributed.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from can_jax.errors import UserError
from can_jax.evaluate.corruptions import CORRUPTIONS, DRAWN, corrupt
from can_jax.evaluate.examples import Split
from can_jax.evaluate.task import Findings, Task, accuracies, accuracy
from can_jax.probes.calibration import calibration

# AlexNet's errors in percent, each the mean of the five severities (arXiv 1903.12261, table 1).
ALEXNET = {
    "gaussian_noise": 88.6428, "shot_noise": 89.4468, "impulse_noise": 92.2640,
    "defocus_blur": 81.9880, "glass_blur": 82.6268, "motion_blur": 78.5948, "zoom_blur": 79.8360,
    "snow": 86.6816, "frost": 82.6572, "fog": 81.9324, "brightness": 56.4592,
    "contrast": 85.3204, "elastic_transform": 64.6056, "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}  # fmt: skip


WHOLE = "train"  # the split of a folder that has none


class Classifier(NamedTuple):
    """What gives a logit for every class it learned.

    Attributes:
        logits: of a split's examples.
        classes: their names, in the order of the logits; empty where unknown.
    """

    logits: Callable[[Split], Float[np.ndarray, "examples classes"]]
    classes: tuple[str, ...]


def mean_corruption_error(errors: dict[str, list[float]]) -> tuple[float, dict[str, float]]:
    """mCE, and the CE of each corruption: the sum of its errors over the severities, in percent of
    AlexNet's.

    Args:
        errors: in percent, of each corruption at each of the five severities.
    """
    relative = {
        name: 100.0 * float(np.mean(values)) / ALEXNET[name] for name, values in errors.items()
    }
    return float(np.mean(list(relative.values()))), relative


def robustness(task: Task, classifier: Classifier, findings: Findings) -> None:
    """Accuracy and calibration on the test split, under corruptions and on other test sets."""
    settings = task.config.robustness
    clean = task.test()
    findings.count("test", clean)
    logits = classifier.logits(clean)
    measures = accuracies(logits, clean.labels)
    measures |= calibration(logits, clean.labels, settings.bins)
    findings.metrics |= {f"clean/{name}": value for name, value in measures.items()}
    computed = on_the_fly(task)
    curves(task, classifier, findings, computed, relative=False)
    if computed:
        findings.warn(
            "corruptions were computed on the test images; published numbers, mCE among them, are "
            "of the distributed files of ImageNet-C or CIFAR-10-C"
        )
    if DRAWN in computed:
        findings.warn(
            "frost is drawn from a fractal, not taken from the authors' photographs: its numbers, "
            "and means that contain it, are not comparable with published ones"
        )
    for number, shift in enumerate(settings.shifts):
        kind, name = shift.get("kind"), shift.get("name") or shift.get("kind")
        if kind == "imagenet_c":
            curves(task, classifier, findings, distributed(task, shift), f"{name}/", relative=True)
            continue
        if kind not in SHIFTS:
            kinds = ", ".join([*SHIFTS, "imagenet_c"])
            raise UserError(f"config.robustness.shifts[{number}]: kind={kind!r}: one of {kinds}")
        split, accepted, among = SHIFTS[kind](task, shift, classifier.classes)
        found = np.where(among, classifier.logits(split), -np.inf)
        judged = accepted.any(axis=1)
        predictions = found.argmax(axis=1)
        right = accepted[np.arange(len(split)), predictions][judged]
        findings.count(str(name), split)
        findings.examples[f"{name}_judged"] = int(judged.sum())
        findings.metrics[f"{name}/top1"] = 100.0 * float(right.mean())
        if kind in ("classes", "numbered"):
            ece = calibration(found, accepted.argmax(axis=1), settings.bins)
            findings.metrics[f"{name}/ece"] = ece["ece"]


def curves(
    task: Task,
    classifier: Classifier,
    findings: Findings,
    read: dict[str, Callable[[int], Split]],
    prefix: str = "",
    *,
    relative: bool,
) -> None:
    """Measure accuracy for every corruption and severity, and its mean; also ``relative`` to
    AlexNet's errors, which were measured on the distributed files of ImageNet-C alone."""
    settings, rows = task.config.robustness, []
    errors: dict[str, list[float]] = {}
    for name, split_at in read.items():
        errors[name] = []
        row: dict[str, Any] = {"corruption": name}
        for severity in settings.severities:
            split = split_at(severity)
            findings.examples[f"{prefix}{name}/{severity}"] = len(split)
            value = accuracy(classifier.logits(split).argmax(axis=1), split.labels)
            findings.metrics[f"{prefix}{name}/{severity}/top1"] = value
            errors[name].append(100.0 - value)
            row[f"severity {severity}"] = round(value, 2)
        rows.append(row)
    if not errors:
        return
    mean = 100.0 - float(np.mean(list(errors.values())))
    findings.metrics[f"{prefix}corrupted/top1"] = mean
    whole = set(errors) == set(CORRUPTIONS) and sorted(settings.severities) == [1, 2, 3, 4, 5]
    if relative and whole:
        findings.metrics[f"{prefix}mce"], each = mean_corruption_error(errors)
        for row in rows:
            row["CE (%)"] = round(each[row["corruption"]], 1)
    findings.tables[f"{prefix}Corruptions, top-1 (%)"] = rows


def on_the_fly(task: Task) -> dict[str, Callable[[int], Split]]:
    """The test split under each corruption, computed here."""
    wanted = task.config.robustness.corruptions
    names = {"all": list(CORRUPTIONS), "none": []}.get(wanted, wanted.split(","))
    for name in names:
        if name not in CORRUPTIONS:
            raise UserError(
                f"config.robustness.corruptions: {name!r} is none of {', '.join(CORRUPTIONS)}"
            )
    if names and task.data.channels != 3:
        raise UserError("config.robustness.corruptions: they are defined for RGB; set 'none'")

    def reader(name: str) -> Callable[[int], Split]:
        def read(severity: int) -> Split:
            def change(images: np.ndarray, numbers: np.ndarray) -> np.ndarray:
                seeds = [
                    (task.config.seed, list(CORRUPTIONS).index(name), severity, max(int(n), 0))
                    for n in numbers
                ]
                return np.stack(
                    [
                        corrupt(image, name, severity, np.random.default_rng(seed))
                        for image, seed in zip(images, seeds, strict=True)
                    ]
                )

            data = task.config.data
            return task.read(task.data, task.test_split, data.test_examples, change=change)

        return read

    return {name: reader(name) for name in names}


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


def distributed(task: Task, shift: dict[str, Any]) -> dict[str, Callable[[int], Split]]:
    """ImageNet-C as it is distributed."""
    root = Path(path_of(shift))
    found = sorted(path.name for path in root.iterdir() if path.name in CORRUPTIONS)
    # In some of its archives the corruptions lie in four folders by kind.
    places = {path.name: path for path in [*root.glob("*"), *root.glob("*/*")] if path.is_dir()}
    found = [name for name in CORRUPTIONS if name in places]
    if not found:
        raise UserError(f"config.robustness.shifts: imagenet_c: {root} holds none of its folders")

    def reader(name: str) -> Callable[[int], Split]:
        def read(severity: int) -> Split:
            data = folder_of(task, str(places[name] / str(severity)))
            return task.read(data, WHOLE, task.config.data.test_examples)

        return read

    return {name: reader(name) for name in found}


Judged = tuple[Split, Bool[np.ndarray, "examples classes"], Bool[np.ndarray, " classes"]]


def same_classes(task: Task, shift: dict[str, Any], classes: tuple[str, ...]) -> Judged:
    """Class folders are named as in training; the choice is among those that are there."""
    split = task.read(folder_of(task, path_of(shift)), WHOLE, task.config.data.test_examples)
    unknown = sorted(set(split.classes) - set(classes))
    if unknown:
        raise UserError(
            f"config.robustness.shifts: {shift['path']} has the class {unknown[0]!r}, which the "
            "classifier does not know"
        )
    return judged(split, np.array([classes.index(name) for name in split.classes]), len(classes))


def numbered_classes(task: Task, shift: dict[str, Any], classes: tuple[str, ...]) -> Judged:
    """Class folders are named by numbers, which are not in their order as words: 10 is before 2."""
    split = task.read(folder_of(task, path_of(shift)), WHOLE, task.config.data.test_examples)
    numbers = [int(name) if name.isdigit() else -1 for name in split.classes]
    if min(numbers) < 0 or max(numbers) >= len(classes):
        raise UserError(
            f"config.robustness.shifts: the folders of {shift['path']} are no numbers below "
            f"{len(classes)}"
        )
    return judged(split, np.array(numbers), len(classes))


def judged(split: Split, of_folder: Int[np.ndarray, " folders"], classes: int) -> Judged:
    """A split whose every image has one right class, among those of its folders."""
    accepted = np.zeros((len(split), classes), bool)
    accepted[np.arange(len(split)), of_folder[split.labels]] = True
    among = np.zeros(classes, bool)
    among[of_folder] = True
    return split, accepted, among


def real_labels(task: Task, shift: dict[str, Any], classes: tuple[str, ...]) -> Judged:
    """The validation images with all the labels that they deserve (arXiv 2006.07159): `real.json`
    is a list of lists, in the order of the images' numbers. What has none is not judged."""
    labels = json.loads(Path(path_of(shift, "labels")).read_text())
    data = folder_of(task, path_of(shift))
    split = task.read(data, WHOLE, task.config.data.test_examples, labelled=False)
    accepted = np.zeros((len(split), len(classes)), bool)
    for row, number in enumerate(split.numbers):
        name = split.source.describe(int(number))
        found = re.search(r"(\d{8})\.\w+", name)
        if not found or not 1 <= int(found[1]) <= len(labels):
            raise UserError(f"config.robustness.shifts: real: {name} is no numbered image")
        accepted[row, labels[int(found[1]) - 1]] = True
    return split, accepted, np.ones(len(classes), bool)


def objectnet(task: Task, shift: dict[str, Any], classes: tuple[str, ...]) -> Judged:
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
    data = folder_of(task, str(root / "images"))
    split = task.read(data, WHOLE, task.config.data.test_examples)
    accepted = np.zeros((len(split), len(classes)), bool)
    for folder, name in enumerate(split.classes):
        words = tables["folder_to_objectnet_label"].get(name)
        for label in tables["objectnet_to_imagenet_1k"].get(words, "").split("; "):
            if label in by_words:
                accepted[split.labels == folder, by_words[label]] = True
    return split, accepted, np.ones(len(classes), bool)


SHIFTS = {
    "classes": same_classes,
    "numbered": numbered_classes,
    "real": real_labels,
    "objectnet": objectnet,
}
