"""The old names of renamed configuration keys, which are accepted for one more release."""

import functools
from typing import Any

from absl import logging
from ml_collections import ConfigDict

# Old name of a key to its new name, in any block. Remove an entry after the next release.
RENAMED = {"greyscale": "grayscale"}


@functools.cache
def _warn(name: str) -> None:
    """Log a warning that a key was renamed, once per key and process."""
    logging.warning("the configuration key %s is now called %s", name, RENAMED[name])


class Block(ConfigDict):
    """A block of configuration keys that also accepts their old names."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(RENAMED.get(key, key))

    def __setitem__(self, key: str, value: Any) -> None:
        if key in RENAMED:
            _warn(key)
        super().__setitem__(RENAMED.get(key, key), value)

    def get_type(self, key: str) -> Any:
        """Return the type to which the command line converts the value of a key."""
        return super().get_type(RENAMED.get(key, key))


def with_new_names(values: Any) -> Any:
    """Return a stored configuration in which old names of keys are replaced by the new names."""
    if isinstance(values, dict):
        return {RENAMED.get(key, key): with_new_names(value) for key, value in values.items()}
    return values
