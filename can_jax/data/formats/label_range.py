"""Numbers of classes: those that fit int32, and -1 for all that are unknown."""

import functools

import numpy as np
from absl import logging
from jaxtyping import Int

BEYOND = "labels beyond 32 bits, which count as unknown"
LIMITS = np.iinfo(np.int32)


def is_label(number: int) -> bool:
    """Return whether a number fits int32."""
    return LIMITS.min <= number <= LIMITS.max


def as_label(number: int, where: str) -> int:
    """Return a label, or -1 if it does not fit int32, which is logged once for each ``where``."""
    if is_label(number):
        return number
    _log_once(where)
    return -1


def as_labels(numbers: np.ndarray, where: str) -> Int[np.ndarray, " examples"]:
    """Return labels as int32, -1 where one does not fit; their number is logged."""
    numbers = np.asarray(numbers)
    if numbers.dtype == np.int32:
        return numbers
    beyond = (numbers < LIMITS.min) | (numbers > LIMITS.max)
    if beyond.any():
        logging.warning(
            "%s: %d labels, such as %d, are beyond 32 bits and count as unknown",
            where, beyond.sum(), numbers[beyond][0],
        )  # fmt: skip
    return np.where(beyond, -1, numbers).astype(np.int32)


@functools.cache
def _log_once(where: str) -> None:
    logging.warning("%s has labels beyond 32 bits; they count as unknown (-1)", where)
