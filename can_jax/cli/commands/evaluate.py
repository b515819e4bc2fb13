"""`python -m can_jax.evaluate --config=PROTOCOL --checkpoint=FROM --workdir=OUT`

Evaluates an encoder by an evaluation protocol on a labeled data set; the protocol `health` also
accepts data without labels. FROM is the encoder: a run directory, an export, or a folder or file of
weights of MAE, timm, Hugging Face or big_vision. The command writes `results.json` and
`report.html` to OUT. The default data set is that of the pretraining run. `--data=DIR` selects a
folder of images, shards or arrays; `--config.data.…` selects any other data set.
"""

import json

from absl import logging
from etils import epath

from can_jax.checkpoint.run_directory import step_path
from can_jax.cli.command import Command
from can_jax.cli.data import DataFlag
from can_jax.cli.job import Job
from can_jax.evaluate.config import resolve_evaluation, warnings_of
from can_jax.evaluate.measure import evaluate, is_classifier
from can_jax.evaluate.reports.report import (
    headlines,
    location_of,
    shown_interval,
    splits_of,
    unit_of,
)
from can_jax.monitoring.console import fact_table, plain_console
from can_jax.utils.errors import UserError
from can_jax.utils.progress import apart, phase

COMMAND = Command(__doc__)
FLAGS = COMMAND.flags
_CONFIG = FLAGS.recipe("protocol")
_CHECKPOINT = FLAGS.path(
    "checkpoint",
    "The encoder: a run directory, an export, a file or folder of weights, or can-cifar10.",
)
_STEP = FLAGS.integer(
    "step", None, "The step of the run's checkpoint to use; by default the latest.", 0
)
_WORKDIR = FLAGS.path("workdir", "The directory to which results.json and report.html are written.")
_DATA = DataFlag(FLAGS)
_UNTRAINED = FLAGS.switch(
    "untrained", False, "Evaluate the encoder with random initial weights, as a baseline."
)
_JSON = FLAGS.switch("json", False, "Print JSON instead of a table.")
JOB = Job(FLAGS)


@COMMAND.runs
def main() -> None:
    """Evaluate the encoder that the flags select, and print the results."""
    protocol = _CONFIG.read()
    if _CHECKPOINT.value is None:
        raise UserError(
            "--checkpoint=FROM is missing: give a run directory, an export, or a file of weights"
        )
    if _WORKDIR.value is None:
        raise UserError("--workdir=DIR is missing: give the directory for the results")
    _DATA.select(protocol, _CONFIG.overrides)
    checkpoint = step_path(_CHECKPOINT.value, _STEP.value)
    config = resolve_evaluation(protocol)
    for sentence in warnings_of(config, _CONFIG.overrides, is_classifier(checkpoint)):
        logging.warning(sentence)
    JOB.join()
    workdir = epath.Path(_WORKDIR.value)
    with apart(_JSON.value), phase(f"evaluating by {config.protocol}"):
        results = evaluate(config, checkpoint, workdir, _UNTRAINED.value)
    if _JSON.value:
        print(json.dumps(results, indent=2))
        return
    shown = {"data": location_of(results)}
    shown |= {f"split {i}": phrase for i, phrase in enumerate(splits_of(results), 1)}
    for name, value in headlines(results["metrics"]).items():
        interval = shown_interval(results, name)
        shown[name] = f"{value:.2f}{unit_of(name)}{f' ({interval})' if interval else ''}"
    shown |= {f"examples, {name}": str(n) for name, n in results["examples"].items()}
    shown["results"] = str(workdir / "results.json")
    shown["page to open"] = str(workdir / "report.html")
    plain_console(width=120, soft_wrap=True, highlight=False).print(
        fact_table(results["protocol"]["protocol"], shown)
    )
