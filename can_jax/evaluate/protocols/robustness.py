"""The robustness protocol: accuracy and calibration of a classifier under distribution shift.

Separate test sets are defined in `shifts.py`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from can_jax.config.validate_evaluation import corruptions_of
from can_jax.data.evaluation.pairs import Part
from can_jax.evaluate.protocols.corruptions import CORRUPTIONS, DRAWN, corrupt
from can_jax.evaluate.protocols.shifts import Reads, open_shift
from can_jax.evaluate.split_features import Split
from can_jax.evaluate.task import EvalContext, EvalResults, accuracies, accuracy
from can_jax.features.calibration import calibration
from can_jax.utils.errors import UserError

# AlexNet's errors in percent, each the mean of the five severities (arXiv 1903.12261, table 1).
ALEXNET = {
    "gaussian_noise": 88.6428, "shot_noise": 89.4468, "impulse_noise": 92.2640,
    "defocus_blur": 81.9880, "glass_blur": 82.6268, "motion_blur": 78.5948, "zoom_blur": 79.8360,
    "snow": 86.6816, "frost": 82.6572, "fog": 81.9324, "brightness": 56.4592,
    "contrast": 85.3204, "elastic_transform": 64.6056, "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}  # fmt: skip


Logits = Callable[[Split], Float[np.ndarray, "examples classes"]]


def mean_corruption_error(errors: dict[str, list[float]]) -> tuple[float, dict[str, float]]:
    """Return the mean corruption error and that of each corruption (arXiv 1903.12261).

    The error of a corruption is its mean over the severities, in percent of AlexNet's.

    Args:
        errors: The top-1 errors in percent, by corruption, at each of the five severities.
    """
    relative = {
        name: 100.0 * float(np.mean(values)) / ALEXNET[name] for name, values in errors.items()
    }
    return float(np.mean(list(relative.values()))), relative


def robustness(
    task: EvalContext, clean: Part, fit: Callable[[], Logits], findings: EvalResults
) -> None:
    """Measure accuracy and calibration on the test split, corrupted images and other test sets.

    All test sets are opened, and their classes matched, before any are encoded or a head is
    trained. Collective: every process must call this.

    Args:
        task: The evaluation context.
        clean: The examples of the test split.
        fit: A function that returns the classifier, which maps a split to logits.
        findings: The results, which receive the metrics and warnings.

    Raises:
        UserError: A test set is missing or has other classes.
    """
    settings, classes = task.config.robustness, clean.classes
    corrupted = on_the_fly(task, clean)
    shifts = [(shift, open_shift(task, shift, classes, findings)) for shift in settings.shifts]
    logits_of = fit()
    split = task.read(clean)
    findings.count("test", split)
    logits = logits_of(split)
    measures = accuracies(logits, split.labels)
    measures |= calibration(logits, split.labels, settings.bins)
    findings.metrics |= {f"clean/{name}": value for name, value in measures.items()}
    curves(task, logits_of, findings, corrupted, relative=False)
    if corrupted:
        findings.warn(
            "corruptions were computed on the test images; published numbers, mCE among them, are "
            "of the distributed files of ImageNet-C or CIFAR-10-C"
        )
    if DRAWN in corrupted:
        findings.warn(
            "frost is drawn from a fractal, not taken from the authors' photographs: its numbers, "
            "and means that contain it, are not comparable with published ones"
        )
    for shift, opened in shifts:
        kind, name = shift["kind"], shift.get("name") or shift["kind"]
        if isinstance(opened, dict):
            curves(task, logits_of, findings, opened, f"{name}/", relative=True)
            continue
        split = task.read(opened.part, labelled=kind != "real")
        accepted = opened.accepted(split)
        masked_logits = np.where(opened.among, logits_of(split), -np.inf)
        judged = accepted.any(axis=1)
        predictions = masked_logits.argmax(axis=1)
        right = accepted[np.arange(len(split)), predictions][judged]
        findings.count(str(name), split)
        findings.examples[f"{name}_judged"] = int(judged.sum())
        findings.metrics[f"{name}/top1"] = 100.0 * float(right.mean())
        if kind in ("classes", "numbered"):
            ece = calibration(masked_logits, accepted.argmax(axis=1), settings.bins)
            findings.metrics[f"{name}/ece"] = ece["ece"]


def curves(
    task: EvalContext,
    logits_of: Logits,
    findings: EvalResults,
    read: Reads,
    prefix: str = "",
    *,
    relative: bool,
) -> None:
    """Measure the accuracy at every corruption and severity, and their mean.

    Args:
        task: The evaluation context.
        logits_of: A function from a split to logits.
        findings: The results, which receive the metrics and a table.
        read: For each corruption, a function that reads the split at a severity.
        prefix: A prefix of the metric names, such as ``imagenet_c/``.
        relative: Compute errors relative to AlexNet's. These were measured on ImageNet-C as
            distributed.
    """
    settings, rows = task.config.robustness, []
    errors: dict[str, list[float]] = {}
    for name, split_at in read.items():
        errors[name] = []
        row: dict[str, Any] = {"corruption": name}
        for severity in settings.severities:
            split = split_at(severity)
            findings.examples[f"{prefix}{name}/{severity}"] = len(split)
            value = accuracy(logits_of(split).argmax(axis=1), split.labels)
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


def on_the_fly(task: EvalContext, clean: Part) -> Reads:
    """Return readers of the test split under each corruption, computed while reading."""
    names = corruptions_of(task.config.robustness.corruptions, tuple(CORRUPTIONS))
    if names and task.data.channels != 3:
        raise UserError("config.robustness.corruptions: they are defined for RGB; set 'none'")

    def reader(name: str) -> Callable[[int], Split]:
        def read(severity: int) -> Split:
            def change(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
                seeds = [
                    (task.config.seed, list(CORRUPTIONS).index(name), severity, max(int(n), 0))
                    for n in indices
                ]
                return np.stack(
                    [
                        corrupt(image, name, severity, np.random.default_rng(seed))
                        for image, seed in zip(images, seeds, strict=True)
                    ]
                )

            return task.read(clean, change)

        return read

    return {name: reader(name) for name in names}
