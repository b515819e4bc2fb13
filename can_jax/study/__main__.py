"""`python -m can_jax.study --config=configs/study/NAME.py --workdir=RUNS [--results=DIR]`

Trains and measures every run of a study, one after the other, and writes a JSON file for each to
`benchmarks/results/study/NAME`. A run that has such a file is not made again, one that was stopped
goes on: after SIGTERM or any kill give the same command. Give it several times at once, and they
share the runs. `--pending` lists what is left; `--report=docs/study.md` makes tables and plots of
the results that are there.
"""

from absl import flags
from etils import epath
from ml_collections import config_flags
from rich.console import Console

from can_jax import command
from can_jax.errors import UserError
from can_jax.study.driver import Driver
from can_jax.study.plan import Plan
from can_jax.study.report import Report

RESULTS = epath.Path("benchmarks/results/study")

_CONFIG = config_flags.DEFINE_config_file("config", None, "The study, a file of configs/study.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run directories are.")
_RESULTS = flags.DEFINE_string("results", None, f"Of each run; by default {RESULTS}/NAME.")
_PENDING = flags.DEFINE_bool("pending", False, "Say what is done and what is left, and end.")
_REPORT = flags.DEFINE_string("report", None, "Write a page about what is known, and end.")


def main() -> None:
    """Flags to results."""
    if _CONFIG.value is None:
        raise UserError("--config=FILE is missing; studies are in configs/study/")
    only_read = _PENDING.value or _REPORT.value
    if _WORKDIR.value is None and not only_read:
        raise UserError("--workdir=DIR is missing: say where the runs may write")
    recipe = _CONFIG.value.recipe
    recipe.data.path = recipe.data.path or ("-" if only_read else None)
    plan = Plan(_CONFIG.value)
    results = epath.Path(_RESULTS.value) if _RESULTS.value else RESULTS / plan.name
    driver = Driver(plan, epath.Path(_WORKDIR.value or "."), results)
    console = Console(width=120, soft_wrap=True, highlight=False)
    if _PENDING.value:
        for line in driver.progress():
            console.print(line)
        return
    if _REPORT.value:
        Report(driver, epath.Path(_REPORT.value)).write()
        console.print(f"wrote {_REPORT.value}")
        return
    driver.work()


if __name__ == "__main__":
    command.run(main, __doc__)
