"""`python -m can_jax.evaluate.compare --runs=OUT1,OUT2 [--output=report.html]`

Prints a matrix of weights by protocol and data, with a star at the best of each column, and writes
a page with it. Values are compared only where the test examples are the same.
"""

from etils import epath
from rich.table import Table

from can_jax.cli.command import Command
from can_jax.evaluate.reports.comparison import comparison, matrix
from can_jax.evaluate.reports.results import read_results
from can_jax.monitoring.console import plain_console
from can_jax.utils.errors import UserError, printable
from can_jax.utils.files import replace_text

COMMAND = Command(__doc__)
FLAGS = COMMAND.flags
_RUNS = FLAGS.paths("runs", "The directories of the evaluations, with commas between.")
_OUTPUT = FLAGS.path("output", "The file of the page.", default="report.html")


@COMMAND.runs
def main() -> None:
    """Print the matrix of several `results.json` files, and write their page."""
    if not _RUNS.value:
        raise UserError("--runs=OUT1,OUT2 is missing: give the directories of evaluations")
    paths = [epath.Path(run) for run in _RUNS.value]
    names = [path.name for path in paths]
    labels = names if len(set(names)) == len(names) else list(_RUNS.value)
    runs = {label: read_results(path) for label, path in zip(labels, paths, strict=True)}
    output = epath.Path(_OUTPUT.value)
    if output.is_dir():
        raise UserError(f"--output={output} is a directory: give the file of the page")
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_text(output, comparison(runs))
    rows = matrix(runs)
    shown = Table(*rows[0])
    for row in rows:
        shown.add_row(*(printable(c["text"]) + (" *" if c["best"] else "") for c in row.values()))
    plain_console(width=160).print(shown)
    print(f"page to open: {_OUTPUT.value}")
