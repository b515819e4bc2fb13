"""Types of configuration values, such as positive integers, that several keys share."""

from typing import Any

from can_jax.utils.settings import Number, Several, Special, Text, Whole

MOST = 2**31 - 1  # the largest int32, the type of integers on devices
COUNT = Whole(1, MOST)
OR_NEVER = Whole(0, MOST)
SHARE = Number(0, 1)
STRENGTH = Number(0, 100)
AXIS = Whole(1, 2**20, also=(-1,))


def are_blocks(value: Any) -> bool:
    """Return whether a value is a sequence of dicts."""
    return isinstance(value, tuple | list) and all(isinstance(part, dict) for part in value)


def _is_scale(value: Any) -> bool:
    """Return whether a value is a (pattern, factor) pair."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    return Text().accepts(value[0]) and Number(0, 1000).accepts(value[1])


SCALES = Several(Special("(pattern, factor) pairs with factors from 0 to 1,000", _is_scale, tuple))


def _are_options(value: Any) -> bool:
    """Return whether a value is a sequence of (name, value) pairs with distinct names."""
    if not isinstance(value, tuple | list):
        return False
    pairs = all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in value)
    if not pairs or not all(isinstance(n, str) and n.isidentifier() for n, _ in value):
        return False
    return len({name for name, _ in value}) == len(value)


OPTIONS = Special(
    "(name, value) pairs with distinct names, such as (('b1', 0.95),)", _are_options, tuple
)

# A stored configuration keeps `auto`, so that a run can be resumed, evaluated and loaded on devices
# for which `auto` means another value.
AUTO = "auto"
AUTO_OR_SWITCH = Special(
    "auto, True or False", lambda value: value == AUTO or isinstance(value, bool)
)
