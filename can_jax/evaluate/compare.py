"""`python -m can_jax.evaluate.compare --runs=OUT1,OUT2 [--output=report.html]`

Puts the results of several evaluations on one page, side by side.
"""

from etils import epath

from can_jax.cli import app as command
from can_jax.cli.options import define_path, define_paths
from can_jax.evaluate.reports.report import comparison
from can_jax.evaluate.reports.results import read_results
from can_jax.utils.errors import UserError
from can_jax.utils.files import replace_text

_RUNS = define_paths("runs", "Directories of evaluations, with commas between.")
_OUTPUT = define_path("output", "The page to write.", default="report.html")


def main() -> None:
    """Several `results.json` to one page."""
    if not _RUNS.value:
        raise UserError("--runs=OUT1,OUT2 is missing: directories of evaluations")
    places = [epath.Path(run) for run in _RUNS.value]
    names = [place.name for place in places]
    labels = names if len(set(names)) == len(names) else list(_RUNS.value)
    runs = {label: read_results(place) for label, place in zip(labels, places, strict=True)}
    replace_text(epath.Path(_OUTPUT.value), comparison(runs))
    print(f"page to open: {_OUTPUT.value}")


if __name__ == "__main__":
    command.run(main, __doc__)
