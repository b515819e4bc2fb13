"""Temporary values of JAX's configuration."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextlib.contextmanager
def jax_config(**values: Any) -> Iterator[None]:
    """Set keys of `jax.config`, and restore their previous values when the context ends.

        with jax_config(jax_enable_x64=True):
            ...

    The values apply to all threads of the process.
    """
    before = {name: getattr(jax.config, name) for name in values}
    try:
        _update(values)
        yield
    finally:
        _update(before)


def _update(values: dict[str, Any]) -> None:
    changed = {name for name, value in values.items() if getattr(jax.config, name) != value}
    for name in changed:
        jax.config.update(name, values[name])
    if "jax_enable_compilation_cache" in changed:  # JAX reads this key only for the first program
        compilation_cache.reset_cache()
