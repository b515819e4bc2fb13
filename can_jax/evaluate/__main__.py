"""`python -m can_jax.evaluate --config=PROTOCOL --checkpoint=FROM --workdir=OUT`

Measures an encoder by a protocol, on any labelled data set. FROM is a run directory, an export, or
a folder or file of weights of MAE, timm, Hugging Face or big_vision. OUT gets `results.json` and
`report.html`. Without `--config.data.…` the data is that of the run.
"""

import contextlib
import json
import sys

from absl import flags
from etils import epath

from can_jax.cli import app as command
from can_jax.cli import job
from can_jax.cli.options import define_path, define_recipe, demand_recipe
from can_jax.evaluate.config import resolve_evaluation
from can_jax.evaluate.protocols.registry import evaluate
from can_jax.evaluate.reports.report import headlines
from can_jax.monitoring.console import fact_table, plain_console
from can_jax.utils.errors import UserError

_CONFIG = define_recipe("protocol")
_CHECKPOINT = define_path("checkpoint", "A run directory, an export, or a file of weights.")
_WORKDIR = define_path("workdir", "Where the results are written.")
_UNTRAINED = flags.DEFINE_bool("untrained", False, "Take the encoder as it was before training.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
flags.adopt_module_key_flags(job)


def main() -> None:
    """Flags to results."""
    protocol = demand_recipe(_CONFIG.value, "protocol")
    if _CHECKPOINT.value is None:
        raise UserError(
            "--checkpoint=FROM is missing: a run directory, an export, or a file of weights"
        )
    if _WORKDIR.value is None:
        raise UserError("--workdir=DIR is missing: say where the results go")
    config = resolve_evaluation(protocol)
    job.join()
    workdir = epath.Path(_WORKDIR.value)
    # With --json nothing else is on stdout.
    with contextlib.redirect_stdout(sys.stderr) if _JSON.value else contextlib.nullcontext():
        results = evaluate(config, _CHECKPOINT.value, workdir, _UNTRAINED.value)
    if _JSON.value:
        print(json.dumps(results, indent=2))
        return
    shown = {name: f"{value:.2f}" for name, value in headlines(results["metrics"]).items()} | {
        f"examples, {name}": count for name, count in results["examples"].items()
    }
    shown["results"] = str(workdir / "results.json")
    shown["page to open"] = str(workdir / "report.html")
    plain_console(width=120, soft_wrap=True, highlight=False).print(
        fact_table(results["protocol"]["protocol"], shown)
    )


if __name__ == "__main__":
    command.run(main, __doc__)
