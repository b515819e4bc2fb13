"""`python -m can_jax.report RUN... [--output=run_report.html]`

Writes an HTML page about a run: its metric curves, throughput, figures, settings, changes of
settings, process starts and environment. For several runs, the page shows them side by side. The
page is a single file that loads no other files and opens without a web server. A run in progress is
shown up to its latest metrics.
"""

import os

from etils import epath

from can_jax.cli.command import Command
from can_jax.evaluate.reports.run_record import read_record
from can_jax.evaluate.reports.run_report import run_report
from can_jax.utils.errors import UserError, reason_of
from can_jax.utils.files import check_file, distinct_names, replace_text

COMMAND = Command(__doc__, "RUN...")
FLAGS = COMMAND.flags
_OUTPUT = FLAGS.path("output", "The HTML file to write.", default="run_report.html")


@COMMAND.runs
def main(*runs: str) -> None:
    """Write an HTML page about one or several run directories."""
    check_file(_OUTPUT.value, "--output=", create_parents=False)
    paths = [os.path.normpath(run) if "://" not in run else run.rstrip("/") for run in runs]
    if len(set(paths)) < len(paths):
        raise UserError(f"{' '.join(runs)}: one of these runs is given twice")
    labels = distinct_names([os.path.abspath(p) if "://" not in p else p for p in paths])
    records = [read_record(epath.Path(p), label) for p, label in zip(paths, labels, strict=True)]
    try:
        replace_text(epath.Path(_OUTPUT.value), run_report(records))
    except OSError as error:
        raise UserError(
            f"--output={_OUTPUT.value} cannot be written: {reason_of(error)}"
        ) from error
    print(f"page to open: {_OUTPUT.value}")
