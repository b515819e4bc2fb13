"""`python -m can_jax.study --config=STUDY --workdir=RUNS [--results=DIR]`

Trains and evaluates every run of a study in turn, and writes a JSON file for each to
`RUNS/results`, or to the folder of `--results`. A run that has such a file is skipped. Re-running
the command after SIGTERM or a kill resumes the interrupted run. Several such commands at once share
the runs. `--pending` lists the remaining runs; `--report=PAGE.md` writes tables and plots of the
available results.
"""

from etils import epath

from can_jax.cli.command import Command
from can_jax.monitoring.console import plain_console
from can_jax.study.driver import Driver
from can_jax.study.plan import Plan
from can_jax.study.report import Report
from can_jax.utils.errors import UserError

COMMAND = Command(__doc__)
FLAGS = COMMAND.flags
_CONFIG = FLAGS.recipe("study")
_WORKDIR = FLAGS.path("workdir", "The parent of the run directories.")
_RESULTS = FLAGS.path("results", "The folder of the results; by default WORKDIR/results.")
_PENDING = FLAGS.switch(
    "pending", False, "List the finished and the remaining runs, without training."
)
_REPORT = FLAGS.path("report", "Write a page of the available results, without training.")


@COMMAND.runs
def main() -> None:
    """Run the study, or list or report its results."""
    study = _CONFIG.read()
    only_read = _PENDING.value or _REPORT.value
    if _WORKDIR.value is None and not only_read:
        raise UserError("--workdir=DIR is missing: give the parent of the run directories")
    if _WORKDIR.value is None and _RESULTS.value is None:
        raise UserError("--workdir=DIR or --results=DIR is missing: give the folder of the results")
    study.recipe.data.path = study.recipe.data.path or ("-" if only_read else None)
    plan = Plan(study)
    workdir = epath.Path(_WORKDIR.value or ".")
    results = epath.Path(_RESULTS.value) if _RESULTS.value else workdir / "results"
    driver = Driver(plan, workdir, results)
    console = plain_console(width=120, soft_wrap=True, highlight=False)
    if _PENDING.value:
        for line in driver.progress():
            console.print(line)
        return
    if _REPORT.value:
        Report(driver, epath.Path(_REPORT.value)).write()
        console.print(f"wrote {_REPORT.value}")
        return
    if not any(driver.missing()):
        console.print(f"every run has its result in {results}; nothing to do")
    driver.work()
