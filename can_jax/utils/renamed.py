"""Old names of configuration keys, which are accepted for one release after they were renamed."""

import functools
from typing import Any

from absl import logging
from ml_collections import ConfigDict

# Old name of a key to its new name, in any block. Remove an entry after the release that follows.
RENAMED = {"greyscale": "grayscale"}


@functools.cache
def _warn(name: str) -> None:
    """Log that a key was renamed, once per process."""
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
        """Return the type of a key, for an option of the command line."""
        return super().get_type(RENAMED.get(key, key))


def with_new_names(values: Any) -> Any:
    """Return stored configuration values with the new names of their keys, recursively."""
    if isinstance(values, dict):
        return {RENAMED.get(key, key): with_new_names(value) for key, value in values.items()}
    return values
