"""Text for ``--help`` about recipes and their keys, and the text form of a configuration."""

import textwrap

from ml_collections import ConfigDict

from can_jax.config.shipped import find_shipped, names_of, summary


def recipes_help(kind: str = "recipe") -> str:
    """Return a text for ``--help`` with the shipped recipes of a kind and their summaries."""
    names = names_of(kind)
    width = max(map(len, names))
    lines = []
    for name in names:
        path = find_shipped(name, kind)
        lines.append(f"  {name:{width}}  {summary(path) if path else ''}")
    return "\n\nrecipes (--config=NAME):\n" + "\n".join(lines)


def keys_help() -> str:
    """Return a text for ``--help`` with the keys of a recipe, their defaults and meanings."""
    from can_jax.config.defaults import RECIPE
    from can_jax.utils.settings import flat_keys

    lines = []
    for name, key in flat_keys(RECIPE):
        unit = f" [{key.unit}]" if key.unit else ""
        lines.append(f"  --config.{name}={key.default}{unit}")
        lines += textwrap.wrap(key.meaning, 92, initial_indent="      ", subsequent_indent="      ")
    return "\n\nkeys of a recipe, with their defaults:\n" + "\n".join(lines)


def settings_text(config: ConfigDict) -> str:
    """Resolve and check a configuration, and return it as lines ``key = value``.

    Raises:
        UserError: A setting is invalid.
    """
    from can_jax.config.resolve import resolve
    from can_jax.utils.nested import flatten

    flat = flatten(resolve(config).to_dict())
    return "\n".join(f"{key} = {value!r}" for key, value in sorted(flat.items()))
