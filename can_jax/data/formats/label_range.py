"""Conversion of class labels to int32; labels that do not fit become -1 (unknown)."""

import functools

import numpy as np
from absl import logging
from jaxtyping import Int

BEYOND = "labels beyond 32 bits, which count as unknown"
LIMITS = np.iinfo(np.int32)


def is_label(value: int) -> bool:
    """Return whether an integer fits int32."""
    return LIMITS.min <= value <= LIMITS.max


def as_label(value: int, where: str) -> int:
    """Return a label, or -1 if it does not fit int32; log the first such label per ``where``."""
    if is_label(value):
        return value
    _log_once(where)
    return -1


def as_labels(labels: np.ndarray, where: str) -> Int[np.ndarray, " examples"]:
    """Return labels as int32, with -1 for those that do not fit; logs how many do not."""
    labels = np.asarray(labels)
    if labels.dtype == np.int32:
        return labels
    beyond = (labels < LIMITS.min) | (labels > LIMITS.max)
    if beyond.any():
        logging.warning(
            "%s: %d labels, such as %d, are beyond 32 bits and count as unknown",
            where, beyond.sum(), labels[beyond][0],
        )  # fmt: skip
    within = np.where(beyond, 0, labels).astype(np.int32)  # unsigned labels have no -1
    return np.where(beyond, np.int32(-1), within)


@functools.cache
def _log_once(where: str) -> None:
    logging.warning("%s has labels beyond 32 bits; they count as unknown (-1)", where)
