"""`python -m can_jax.evaluate.compare --runs=OUT1,OUT2 [--output=report.html]`

Writes a page that compares the results of several evaluations.
"""

from etils import epath

from can_jax.cli.command import Command
from can_jax.evaluate.reports.report import comparison
from can_jax.evaluate.reports.results import read_results
from can_jax.utils.errors import UserError
from can_jax.utils.files import replace_text

COMMAND = Command(__doc__)
FLAGS = COMMAND.flags
_RUNS = FLAGS.paths("runs", "The directories of the evaluations, with commas between.")
_OUTPUT = FLAGS.path("output", "The file of the page.", default="report.html")


@COMMAND.runs
def main() -> None:
    """Write a page that compares several `results.json` files."""
    if not _RUNS.value:
        raise UserError("--runs=OUT1,OUT2 is missing: give the directories of evaluations")
    paths = [epath.Path(run) for run in _RUNS.value]
    names = [path.name for path in paths]
    labels = names if len(set(names)) == len(names) else list(_RUNS.value)
    runs = {label: read_results(path) for label, path in zip(labels, paths, strict=True)}
    replace_text(epath.Path(_OUTPUT.value), comparison(runs))
    print(f"page to open: {_OUTPUT.value}")
