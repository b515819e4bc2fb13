"""Conversion of class labels to int32. Labels outside the range of int32 become -1, which means
unknown."""

import functools

import numpy as np
from absl import logging
from jaxtyping import Int

BEYOND = "labels outside the range of int32, which count as unknown"
LIMITS = np.iinfo(np.int32)


def is_label(value: int) -> bool:
    """Return whether an integer is within the range of int32."""
    return LIMITS.min <= value <= LIMITS.max


def as_label(value: int, where: str) -> int:
    """Return a label, or -1 if the label is outside the range of int32.

    For a label outside the range, a warning that begins with ``where`` is logged, once for each
    ``where``.
    """
    if is_label(value):
        return value
    _log_once(where)
    return -1


def as_labels(labels: np.ndarray, where: str) -> Int[np.ndarray, " examples"]:
    """Return labels as int32. Labels outside the range of int32 become -1; a warning that begins
    with ``where`` gives their number."""
    labels = np.asarray(labels)
    if labels.dtype == np.int32:
        return labels
    beyond = (labels < LIMITS.min) | (labels > LIMITS.max)
    if beyond.any():
        logging.warning(
            "%s: %d labels, such as %d, are outside the range of int32 and count as unknown",
            where, beyond.sum(), labels[beyond][0],
        )  # fmt: skip
    within = np.where(beyond, 0, labels).astype(np.int32)  # unsigned labels have no -1
    return np.where(beyond, np.int32(-1), within)


@functools.cache
def _log_once(where: str) -> None:
    logging.warning("%s has labels outside the range of int32; they count as unknown (-1)", where)
