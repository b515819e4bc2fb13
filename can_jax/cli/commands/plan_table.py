"""`python -m can_jax.plan.table configs/vit_l.py …`

Updates the table of plans in the docstring of a recipe, by running the planner for each row. A row
begins with the TPU slice, and with the settings that differ from the recipe (`-` if none differ):

    slice      settings          memory of a device  estimated  expected  images/s  days
    v5e:16x16  -                 3.6 of 15.8 GiB     0.081 s    0.091 s   44,800    0.26
    v4:4x4x4   model.remat=full  …
"""

import json
import re
import subprocess
import sys
from typing import Any

from can_jax.cli.command import Command
from can_jax.config.shipped import find
from can_jax.distributed.hardware import GIB
from can_jax.plan.report import rounded
from can_jax.utils.errors import UserError
from can_jax.utils.files import check_file, replace_text

HEADER = (
    "slice", "settings", "memory of a device", "estimated", "expected", "images/s", "days",
)  # fmt: skip


COMMAND = Command(__doc__, "RECIPE...")


@COMMAND.runs
def main(*recipes: str) -> None:
    """Update the table of plans in the docstring of each recipe."""
    for name in recipes:
        path = find(name, "recipe", name)
        check_file(path)
        text = path.read_text()
        old, rows = rows_of(text, str(path))
        lines = [HEADER, *(planned(str(path), row) for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        new = ["    " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        replace_text(path, text.replace(old, "\n".join(new)))
        print("\n".join(new))


def rows_of(text: str, path: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the table in a recipe's text, and the TPU slice and settings of each row."""
    table = re.search(r"^    slice .*\n(?:    \S.*\n)+", text, re.MULTILINE)
    if table is None:
        raise UserError(f"{path} has no table of plans: no header line begins with 'slice'")
    old = table[0].rstrip("\n")
    rows = [re.split(r"\s{2,}", line.strip()) for line in old.splitlines()[1:]]
    return old, [(row[0], row[1]) for row in rows]


def planned(path: str, row: tuple[str, str]) -> tuple[str, ...]:
    """Run the planner for a row of the table, and return the row with its results."""
    values = plan(path, *row)
    memory = values["bytes_per_device"]
    return (
        *row,
        f"{memory['total'] / GIB:.1f} of {memory['limit'] / GIB:.1f} GiB",
        "-" if (estimated := values["estimated_seconds"]) is None else f"{estimated:.3f} s",
        f"{values['step_seconds']:.3f} s",
        rounded(values["images_per_second"]),
        f"{values['days']:.2f}",
    )


def plan(path: str, topology: str, settings: str) -> dict[str, Any]:
    """Run `python -m can_jax.plan --json`, and return the parsed output.

    The planner runs in a child process, because JAX cannot change its devices after initialization.
    """
    options = [] if settings == "-" else [f"--config.{option}" for option in settings.split()]
    arguments = [f"--config={path}", f"--topology={topology}", "--json", *options]
    done = subprocess.run(
        [sys.executable, "-m", "can_jax.plan", *arguments], capture_output=True, text=True
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UserError(f"{path} on {topology}: {last[0]}")
    return json.loads(done.stdout)
