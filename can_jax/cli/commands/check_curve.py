"""`python -m can_jax.study.healthy RANGES --run=DIR [--json]`

Compares the metrics of a run, finished or in progress, with reference ranges from a few successful
runs of the same recipe. The exit code is 1 if a metric is outside its range, or if a run has no
value at a step with a reference range. RANGES is the JSON file of the reference ranges, or
`quickstart` for the ranges that the package ships. With `--write` and several runs
(`--run=DIR1,DIR2,DIR3`), the command derives reference ranges from these runs and writes them to
RANGES.
"""

import json
from typing import Any

from etils import epath

from can_jax.cli.command import Command
from can_jax.config.shipped import find
from can_jax.monitoring.console import fact_table, plain_console
from can_jax.monitoring.jsonl import read_metrics
from can_jax.study.reference_ranges import compared, outside, ranges_of
from can_jax.utils.errors import UserError
from can_jax.utils.files import check_file, read_json, replace_text

COMMAND = Command(__doc__, "RANGES")
FLAGS = COMMAND.flags
_RUN = FLAGS.paths("run", "The run directories, separated by commas.")
_WRITE = FLAGS.switch(
    "write", False, "Derive reference ranges from the runs of --run, and write them."
)
_JSON = FLAGS.switch("json", False, "Print JSON instead of a table.")


@COMMAND.runs
def main(curves: str) -> None:
    """Compare runs with reference ranges; with ``--write``, derive the ranges from the runs
    instead."""
    if not _RUN.value:
        raise UserError("--run=DIR is missing: give a run directory")
    if _WRITE.value:
        check_file(curves)
    runs = [read_metrics(epath.Path(run)) for run in _RUN.value]
    for name, run in zip(_RUN.value, runs, strict=True):
        if not run:
            raise UserError(f"--run={name}: metrics.jsonl is missing or empty")
    if _WRITE.value:
        FLAGS.refuse(["json"], "with --write, which prints nothing")
        path = epath.Path(curves)
        if len(runs) < 2:
            raise UserError(
                "--write derives the ranges from the spread of several runs: give the runs as "
                "--run=DIR1,DIR2"
            )
        origin = read_json(epath.Path(_RUN.value[0]) / "environment.json")
        content = {"runs": len(runs), "commit": origin.get("commit"), "bands": ranges_of(runs)}
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(content, indent=1) + "\n")
        return
    ranges = read_json(epath.Path(find(curves, "ranges", curves))).get("bands")
    if not isinstance(ranges, dict):
        raise UserError(f"{curves} is not a file of reference ranges: it has no object 'bands'")
    checks: dict[str, dict[str, Any]] = {
        name: {"values": compared(ranges, run), "outside": outside(ranges, run)}
        for name, run in zip(_RUN.value, runs, strict=True)
    }
    if _JSON.value:
        print(json.dumps(checks, indent=2))
    else:
        rows = {
            name: "\n".join(check["outside"]) or f"{check['values']} values compared, all in range"
            for name, check in checks.items()
        }
        table = fact_table("Comparison with the reference ranges", rows)
        plain_console(width=120, highlight=False).print(table)
    if wrong := [name for name, check in checks.items() if check["outside"]]:
        raise UserError(f"{', '.join(wrong)}: some metrics are outside their reference ranges")
    if empty := [name for name, check in checks.items() if not check["values"]]:
        raise UserError(
            f"{', '.join(empty)}: none of the values logged so far has a reference range"
        )
