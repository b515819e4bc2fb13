"""The robustness protocol: accuracy and calibration of a classifier under distribution shift.

`shifts.py` defines the additional test sets.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from can_jax.config.validate import check
from can_jax.data.evaluation.pairs import Part
from can_jax.evaluate.protocols.base import EvalProtocol
from can_jax.evaluate.protocols.classifier import ClassifierSubject
from can_jax.evaluate.protocols.corruptions import CORRUPTIONS, DRAWN, corrupt
from can_jax.evaluate.protocols.linear import best_heads
from can_jax.evaluate.protocols.shifts import SHIFT, Reads, open_shift
from can_jax.evaluate.split_features import Split
from can_jax.evaluate.task import EvalContext, EvalResults, right_predictions
from can_jax.features.calibration import calibration
from can_jax.utils.errors import UserError
from can_jax.utils.settings import Blocks, Key, Several, Special, Table, Whole

# AlexNet's top-1 errors in percent, averaged over the five severities (arXiv 1903.12261, table 1).
ALEXNET = {
    "gaussian_noise": 88.6428, "shot_noise": 89.4468, "impulse_noise": 92.2640,
    "defocus_blur": 81.9880, "glass_blur": 82.6268, "motion_blur": 78.5948, "zoom_blur": 79.8360,
    "snow": 86.6816, "frost": 82.6572, "fog": 81.9324, "brightness": 56.4592,
    "contrast": 85.3204, "elastic_transform": 64.6056, "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}  # fmt: skip


Logits = Callable[[Split], Float[np.ndarray, "examples classes"]]
# Names in the results that an additional test set cannot have.
RESULTS = ("train", "test", "clean", "corrupted")


def corruptions_of(value: Any) -> tuple[str, ...]:
    """Return the names of the corruptions that `robustness.corruptions` selects.

    Args:
        value: ``all``, ``none``, or comma-separated names.

    Raises:
        UserError: A name is not a key of `CORRUPTIONS`.
    """
    available = tuple(CORRUPTIONS)
    if value in ("all", "none"):
        return available if value == "all" else ()
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
    for name in names:
        if name not in available:
            raise UserError(f"{name!r} is not a corruption; choose from {', '.join(available)}")
    return names


def _are_corruptions(value: Any) -> bool:
    """Return whether a value is valid for `robustness.corruptions`."""
    try:
        corruptions_of(value)
    except (UserError, AttributeError):
        return False
    return True


SETTINGS: Table = {
    "corruptions": Key(
        "all",
        Special(f"all, none, or a comma-separated list of {', '.join(CORRUPTIONS)}",
                _are_corruptions, str),
        "The corruptions to apply to the test split.",
    ),
    "severities": Key(
        (1, 2, 3, 4, 5), Several(Whole(1, 5), empty=False),
        "The severities at which to evaluate each corruption."
    ),
    "shifts": Key(
        (), Blocks(SHIFT, needed=("kind", "path")),
        "Additional test sets; see `can_jax.evaluate.protocols.shifts`.",
    ),
    "bins": Key(
        15, Whole(1, 10**6), "The number of confidence bins of the expected calibration error."
    ),
}  # fmt: skip


def check_robustness(config: ConfigDict) -> None:
    """Check that test sets have unique names, and have ``labels`` if and only if their kind is
    `real`."""
    taken = {*RESULTS, *CORRUPTIONS}
    for index, shift in enumerate(config.robustness.shifts):
        called, kind = f"robustness.shifts[{index}]", shift["kind"]
        name = shift.get("name") or kind
        check(
            name not in taken,
            f"{called}: the name {name!r} is already used in the results; set a different `name`",
        )
        taken.add(name)
        if kind == "real":
            check(shift.get("labels"), f"{called}: set `labels` to the path of real.json")
        else:
            check("labels" not in shift, f"{called}: only kind='real' reads `labels`; remove it")


def evaluate_robustness(context: EvalContext) -> EvalResults:
    """Evaluate a trained classifier, or a linear head that is trained on frozen features.

    Collective: every process must call this.
    """
    results = EvalResults()
    if isinstance(context.subject, ClassifierSubject):
        clean, train = context.test_part(results, context.subject.classes), None
    else:
        pair = context.pair(results)
        clean, train = pair.test, pair.train
    robustness(context, clean, lambda: logits_of(context, train, results), results)
    return results


def mean_corruption_error(errors: dict[str, list[float]]) -> tuple[float, dict[str, float]]:
    """Return the mean corruption error (mCE), and the error of each corruption.

    The error of a corruption is the mean top-1 error over severities, in percent of AlexNet's mean
    error (arXiv 1903.12261). The mCE is the mean error of the corruptions.

    Args:
        errors: The top-1 errors in percent at the five severities, by corruption.
    """
    relative = {
        name: 100.0 * float(np.mean(values)) / ALEXNET[name] for name, values in errors.items()
    }
    return float(np.mean(list(relative.values()))), relative


def robustness(
    context: EvalContext, clean: Part, fit: Callable[[], Logits], results: EvalResults
) -> None:
    """Measure accuracy and calibration on the test split, corrupted images and other test sets.

    Before ``fit`` is called, all test sets are opened, and their classes are matched to those of
    the classifier. Collective: every process must call this.

    Args:
        context: The evaluation context: configuration, model and data.
        clean: The uncorrupted examples of the test split.
        fit: A function without arguments that returns a function from a split to its logits. For an
            encoder, ``fit`` first trains a linear head.
        results: The results, to which metrics and warnings are added.

    Raises:
        UserError: A test set is missing, its classes do not match the classifier's, or corruptions
            are selected for images that are not RGB.
    """
    settings, classes = context.config.robustness, clean.classes
    corrupted = on_the_fly(context, clean)
    shifts = [(shift, open_shift(context, shift, classes, results)) for shift in settings.shifts]
    predict = fit()
    split = context.read(clean)
    results.count("test", split)
    logits = predict(split)
    for name, right in right_predictions(logits, split.labels).items():
        results.score(f"clean/{name}", right)
    measures = calibration(logits, split.labels, settings.bins)
    results.metrics |= {f"clean/{name}": value for name, value in measures.items()}
    curves(context, predict, results, corrupted, relative=False)
    if corrupted:
        results.warn(
            "corruptions were computed on the test images; published numbers, such as mCE, refer "
            "to the distributed files of ImageNet-C or CIFAR-10-C"
        )
    if DRAWN in corrupted:
        results.warn(
            "frost is generated from a fractal, not from the authors' photographs: accuracies "
            "under frost, and means that include it, are not comparable with published numbers"
        )
    for shift, opened in shifts:
        kind, name = shift["kind"], shift.get("name") or shift["kind"]
        if isinstance(opened, dict):
            curves(context, predict, results, opened, f"{name}/", relative=True)
            continue
        split = context.read(opened.part, labeled=kind != "real")
        accepted = opened.accepted(split)
        masked_logits = np.where(opened.among, predict(split), -np.inf)
        judged = accepted.any(axis=1)
        predictions = masked_logits.argmax(axis=1)
        right = accepted[np.arange(len(split)), predictions][judged]
        results.count(str(name), split)
        results.examples[f"{name}_judged"] = int(judged.sum())
        if not judged.any():
            results.warn(
                f"{name}/top1 is omitted: no label of this test set is a class of the classifier"
            )
            continue
        results.score(f"{name}/top1", right)
        if kind in ("classes", "numbered"):
            ece = calibration(masked_logits, accepted.argmax(axis=1), settings.bins)
            results.metrics[f"{name}/ece"] = ece["ece"]


def curves(
    context: EvalContext,
    predict: Logits,
    results: EvalResults,
    read: Reads,
    prefix: str = "",
    *,
    relative: bool,
) -> None:
    """Measure the accuracy for each corruption and severity, and the mean accuracy.

    Args:
        context: The evaluation context: configuration, model and data.
        predict: A function from a split to its logits.
        results: The results, to which metrics and a table are added.
        read: For each corruption, a function that reads the test images at a given severity.
        prefix: A prefix of the metric names, such as ``imagenet_c/``.
        relative: Whether to compute the mean corruption error, if all corruptions and severities
            are present. AlexNet's reference errors are valid only for the files that the authors of
            ImageNet-C distribute.
    """
    settings, rows = context.config.robustness, []
    errors: dict[str, list[float]] = {}
    fingerprints = []
    for name, split_at in read.items():
        errors[name] = []
        row: dict[str, Any] = {"corruption": name}
        for severity in settings.severities:
            split = split_at(severity)
            results.examples[f"{prefix}{name}/{severity}"] = len(split)
            fingerprints.append(split.fingerprint)
            right = predict(split).argmax(axis=1) == split.labels
            value = results.score(f"{prefix}{name}/{severity}/top1", right)
            errors[name].append(100.0 - value)
            row[f"severity {severity}"] = round(value, 2)
        rows.append(row)
    if not errors:
        return
    if prefix:  # a test set of its own
        digest = hashlib.sha256("".join(fingerprints).encode()).hexdigest()[:16]
        results.data[prefix.rstrip("/")] = f"{split.name}:{digest}"
    mean = 100.0 - float(np.mean(list(errors.values())))
    results.metrics[f"{prefix}corrupted/top1"] = mean
    complete = set(errors) == set(CORRUPTIONS) and sorted(settings.severities) == [1, 2, 3, 4, 5]
    if relative and complete:
        results.metrics[f"{prefix}mce"], each = mean_corruption_error(errors)
        for row in rows:
            row["CE (%)"] = round(each[row["corruption"]], 1)
    elif relative:
        absent = [name for name in CORRUPTIONS if name not in errors]
        reason = "config.robustness.severities lacks some of 1 to 5"
        if absent:
            reason = f"the test set has no folder of {', '.join(absent)}"
        results.warn(
            f"{prefix}mce is omitted, and {prefix}corrupted/top1 is not the mean over all "
            f"corruptions and severities: {reason}"
        )
    results.tables[f"{prefix}Corruptions, top-1 (%)"] = rows


def on_the_fly(context: EvalContext, clean: Part) -> Reads:
    """Return, for each selected corruption, a function from a severity to the corrupted test split.

    Raises:
        UserError: Corruptions are selected for images that are not RGB.
    """
    names = corruptions_of(context.config.robustness.corruptions)
    if names and context.data.channels != 3:
        raise UserError(
            "config.robustness.corruptions requires RGB images, but config.data.channels="
            f"{context.data.channels}: set --config.robustness.corruptions=none"
        )

    def reader(name: str) -> Callable[[int], Split]:
        def read(severity: int) -> Split:
            def change(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
                seeds = [
                    (context.config.seed, list(CORRUPTIONS).index(name), severity, max(int(n), 0))
                    for n in indices
                ]
                return np.stack(
                    [
                        corrupt(image, name, severity, np.random.default_rng(seed))
                        for image, seed in zip(images, seeds, strict=True)
                    ]
                )

            return context.read(clean, change)

        return read

    return {name: reader(name) for name in names}


def logits_of(context: EvalContext, train: Part | None, results: EvalResults) -> Logits:
    """Return a function from a split to its logits; for an encoder, train a linear head first.

    Args:
        context: The evaluation context: configuration, model and data.
        train: The training examples of the linear head; None for a trained classifier.
        results: The results, to which example counts and the selected kind of features are added.
    """
    if train is None:
        return lambda split: split.outputs
    learned = context.read(train)
    results.count("train", learned)
    heads, chosen, _ = best_heads(context, learned)
    kind = results.chosen["features"] = chosen["features"]
    return lambda split: heads.logits(context.select(split, kind))[0]


PROTOCOL = EvalProtocol(evaluate_robustness, SETTINGS, check_robustness, takes_classifier=True)
