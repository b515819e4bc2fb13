"""Temporary environment variables."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def restored_environment(*names: str) -> Iterator[None]:
    """Restore environment variables when the context ends; delete those that were not set before.

    Args:
        names: The names of the variables that the body of the context may set.
    """
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
