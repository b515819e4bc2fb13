"""Configuration: the keys with defaults and documentation, their checks, recipes and durations."""

from can_jax.config.resolve import (
    default_config,
    flatten,
    from_json,
    load_recipe,
    resolve,
    to_json,
)

__all__ = ["default_config", "flatten", "from_json", "load_recipe", "resolve", "to_json"]
