"""The option ``--for``: the length of a run, given as a time or a number of epochs, steps or
images."""

import re
from typing import Any

from can_jax.utils.errors import UserError

MINUTES = {"d": 1440.0, "h": 60.0, "m": 1.0, "min": 1.0, "s": 1 / 60}
UNITS = {
    "epoch": "total_epochs", "epochs": "total_epochs", "ep": "total_epochs",
    "step": "total_steps", "steps": "total_steps",
    "image": "total_examples", "images": "total_examples", "examples": "total_examples",
}  # fmt: skip
TIME = re.compile(r"(?:\d+(?:\.\d+)?(?:d|h|min|m|s))+")
PART = re.compile(r"(\d+(?:\.\d+)?)(d|h|min|m|s)")
COUNT = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?) *([a-z]+)")


def parse_length(text: str) -> tuple[str, Any]:
    """Return the recipe key that a length sets, such as ``total_epochs``, and the key's value.

    Args:
        text: The length, such as ``2h``, ``1h30m``, ``100epochs``, ``5000steps`` or ``1e7images``.

    Raises:
        UserError: The text is not a length above 0, or its number of steps or images is not an
            integer.
    """
    plain = text.strip().lower().replace("_", "")
    if TIME.fullmatch(plain):
        minutes = sum(float(number) * MINUTES[unit] for number, unit in PART.findall(plain))
        if minutes > 0:
            return "total_minutes", minutes
    elif (match := COUNT.fullmatch(plain)) and match[2] in UNITS:
        key, value = UNITS[match[2]], float(match[1])
        if value > 0 and (key == "total_epochs" or value.is_integer()):
            return key, value if key == "total_epochs" else int(value)
    raise UserError(
        f"--for={text}: give a time such as 2h, 90m or 1h30m, or a length such as 100epochs, "
        "5000steps or 1e7images"
    )
