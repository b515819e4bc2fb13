"""Checks of the values of `config.data.image_size` and `config.data.range`."""

from typing import Any

from can_jax.data.decoding.depth import Range
from can_jax.utils.settings import Number, Several, Special, Whole, shown

RANGE = "two numbers (low, high) with low < high, both between -1e300 and 1e300"
LIMITS = Number(-1e300, 1e300)  # the difference of two such numbers is finite


def is_size(value: Any) -> bool:
    """Return whether a value is an image size: a number of pixels or a pair (height, width)."""
    sides = tuple(value) if isinstance(value, tuple | list) else (value,)
    return len(sides) in (1, 2) and all(map(Whole(1, 2**15).accepts, sides))


SIZE = Special("an int, or (height, width), in pixels", is_size)


def check_range(value: Any) -> Range:
    """Return a value of `config.data.range` as a pair of floats, or None.

    Raises:
        ValueError: The value is not a pair of numbers (low, high) with low below high.
    """
    if value is None:
        return None
    if not Several(LIMITS, length=2).accepts(value):
        raise ValueError(f"{shown(value)}: give {RANGE}")
    low, high = float(value[0]), float(value[1])
    if not high - low > 1e-300:
        raise ValueError(f"{shown(value)}: give {RANGE}")
    return low, high


def is_range(value: Any) -> bool:
    """Return whether `check_range` accepts a value."""
    try:
        check_range(value)
    except ValueError:
        return False
    return True
