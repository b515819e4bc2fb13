"""The flattening of nested dicts, such as configurations."""

from typing import Any

from flax.traverse_util import flatten_dict


def flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Return a nested dict as a flat dict with dotted keys, such as ``model.width``."""
    return flatten_dict(values, sep=".")
