"""Nested dicts, such as configurations, as flat ones."""

from typing import Any

from flax.traverse_util import flatten_dict


def flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Return a nested dict as a flat dict with dotted keys."""
    return flatten_dict(values, sep=".")
