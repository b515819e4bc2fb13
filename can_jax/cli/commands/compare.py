"""`python -m can_jax.evaluate.compare --runs=OUT1,OUT2 [--output=report.html]`

Prints a table of evaluations and writes it as an HTML page. Each row is a set of weights, and each
column is a metric on one data set. A star marks the best value of a column, if the metric has a
preferred direction. Results on different test examples of one data set are in separate columns.
Evaluations of the same weights share a row if they have equal values in all common columns.
"""

from etils import epath
from rich.table import Table

from can_jax.cli.command import Command
from can_jax.evaluate.reports.comparison import comparison, matrix
from can_jax.evaluate.reports.results import read_results
from can_jax.monitoring.console import plain_console
from can_jax.utils.errors import UserError, printable
from can_jax.utils.files import check_file, distinct_names, replace_text

COMMAND = Command(__doc__)
FLAGS = COMMAND.flags
_RUNS = FLAGS.paths("runs", "The directories of the evaluations, separated by commas.")
_OUTPUT = FLAGS.path("output", "The HTML file to write.", default="report.html")


@COMMAND.runs
def main() -> None:
    """Print the table of several evaluations, and write it as an HTML page."""
    if not _RUNS.value:
        raise UserError("--runs=OUT1,OUT2 is missing: give the directories of evaluations")
    check_file(_OUTPUT.value, "--output=")
    paths = [epath.Path(run) for run in _RUNS.value]
    labels = distinct_names(list(_RUNS.value))
    runs = {label: read_results(path) for label, path in zip(labels, paths, strict=True)}
    output = epath.Path(_OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_text(output, comparison(runs))
    rows = matrix(runs)
    shown = Table(*rows[0])
    for row in rows:
        shown.add_row(*(printable(c["text"]) + (" *" if c["best"] else "") for c in row.values()))
    plain_console(width=160).print(shown)
    print(f"page to open: {_OUTPUT.value}")
