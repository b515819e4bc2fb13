"""`python -m can_jax.study --config=STUDY --workdir=RUNS [--results=DIR]`

Trains and evaluates the runs of a study one after another. The result of each run is a JSON file in
`RUNS/results`, or in the folder of `--results`. Runs that already have a result are skipped.
Re-running the command after SIGTERM or a kill resumes the interrupted run. If several processes run
the command at the same time, they divide the runs among themselves. `--pending` lists the finished
and the remaining runs, and estimates the remaining time, without training. `--report=PAGE.md`
writes a Markdown page with tables and plots of the available results, without training.
"""

from etils import epath

from can_jax.cli.command import Command
from can_jax.monitoring.console import plain_console
from can_jax.study.driver import Driver
from can_jax.study.plan import Plan
from can_jax.study.report import Report
from can_jax.utils.errors import UserError
from can_jax.utils.files import check_directory, check_file

COMMAND = Command(__doc__)
FLAGS = COMMAND.flags
_CONFIG = FLAGS.recipe("study")
_WORKDIR = FLAGS.path("workdir", "The folder in which the run directories are created.")
_RESULTS = FLAGS.path("results", "The folder of the result files; by default WORKDIR/results.")
_PENDING = FLAGS.switch(
    "pending", False, "List the finished and the remaining runs, with an estimate of their time."
)
_REPORT = FLAGS.path(
    "report", "Write the available results to this Markdown file, without training."
)


@COMMAND.runs
def main() -> None:
    """Train and evaluate the runs of a study, list them, or write a report of their results."""
    study = _CONFIG.read()
    only_read = _PENDING.value or _REPORT.value
    if _WORKDIR.value is None and not only_read:
        raise UserError("--workdir=DIR is missing: give the folder for the run directories")
    if _WORKDIR.value is None and _RESULTS.value is None:
        raise UserError(
            "--workdir=DIR and --results=DIR are missing: give one of them to locate the results"
        )
    workdir = epath.Path(_WORKDIR.value or ".")
    results = epath.Path(_RESULTS.value) if _RESULTS.value else workdir / "results"
    if _REPORT.value:
        check_file(_REPORT.value, "--report=")
    elif not _PENDING.value:
        check_directory(workdir, "--workdir=")
        check_directory(results, "--results=")
    study.recipe.data.path = study.recipe.data.path or ("-" if only_read else None)
    plan = Plan(study)
    driver = Driver(plan, workdir, results)
    console = plain_console(width=120, soft_wrap=True, highlight=False)
    if _PENDING.value:
        for line in driver.progress():
            console.print(line)
    if _REPORT.value:
        Report(driver, epath.Path(_REPORT.value)).write()
        console.print(f"wrote {_REPORT.value}")
    if only_read:
        return
    if not any(driver.missing()):
        console.print(f"all runs already have results in {results}; nothing to do")
    driver.work()
