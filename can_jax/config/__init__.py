"""The configuration of a run: its keys with defaults and documentation, and the code that loads,
checks and stores it."""

from can_jax.config.resolve import (
    default_config,
    flatten,
    from_json,
    load_recipe,
    resolve,
    to_json,
)

__all__ = ["default_config", "flatten", "from_json", "load_recipe", "resolve", "to_json"]
