"""`python -m can_jax.plan --config=RECIPE --topology=v5e:16x16 [--search] [--json]`

Compiles the train step of a recipe for devices that are not attached. The command prints whether
the train step fits into device memory. The command also prints the collective operations of the
step, and the estimated times of the step and the run. If the step does not fit, the command
searches for settings that fit, and the exit code is 1.

Examples of TPU slices are `v5e:16x16`, `v4:4x4x4`, `v5p:4x4x4` and `v6e:16x16`. The TPU compiler is
installed by `pip install 'jax[tpu]'`, and needs no TPU. GPUs are given as the number per host and
the number of hosts, such as `h100:8x4` for four hosts of eight GPUs. The GPU compiler is installed
by `pip install 'jax[cuda13]'`, and needs no GPU. Without the GPU compiler, the step is compiled for
CPU devices, and the plan is less accurate.

For TPUs, the time of a step is the sum of the compiler's estimates for the step's instructions.
The time of an instruction without an estimate, and of every GPU kernel, is the longer of its memory
time and its compute time. The command also prints the estimated time of each part of the step.
`--top=20` lists the 20 most expensive instructions with their source lines. `--dump_hlo=FILE`
writes the text of the compiled program to FILE.

With an evaluation protocol that trains a classifier, the command plans the train step of the
classifier: `--config=finetune_imagenet_l --encoder=vit_l --classes=1000`. The encoder is that of a
pretraining recipe or of a run directory.
"""

import json
import sys
from pathlib import Path

from etils import epath
from ml_collections import ConfigDict

from can_jax.checkpoint.run_directory import read_run
from can_jax.cli.command import Command
from can_jax.cli.recipe import kind_of, load
from can_jax.config.resolve import resolve
from can_jax.evaluate.config import resolve_evaluation
from can_jax.evaluate.protocols.finetune import with_own_keys
from can_jax.monitoring.console import plain_console
from can_jax.plan.classifier import classifier_work
from can_jax.plan.estimate import ASSUMED_MFU, PRETRAINING, Work, make_plan
from can_jax.plan.report import (
    IMAGENET,
    as_json,
    attempt_line,
    attempts_as_json,
    attempts_table,
    gib,
    tables,
)
from can_jax.plan.search import Search, fit_mesh
from can_jax.plan.topology import open_topology, planning
from can_jax.utils.errors import UserError
from can_jax.utils.files import check_file
from can_jax.utils.progress import apart
from can_jax.weights.descriptions import is_run

COMMAND = Command(__doc__)
FLAGS = COMMAND.flags
_CONFIG = FLAGS.recipe("recipe", also="protocol")
_ENCODER = FLAGS.path(
    "encoder",
    "The pretraining recipe, or the run directory, of the encoder that an evaluation protocol "
    "trains.",
)
_CLASSES = FLAGS.integer(
    "classes", None, "The number of classes of the classifier; by default 1000.", lower_bound=1
)
_TOPOLOGY = FLAGS.text("topology", None, "The devices to plan for, such as v5e:16x16.")
_SLICES = FLAGS.integer(
    "slices",
    1,
    "The number of TPU slices, which slower links connect. For GPUs, the number of hosts is "
    "multiplied by this value.",
)
_MFU = FLAGS.number(
    "mfu",
    None,
    "The assumed fraction of peak FLOP/s for devices whose compiler is not installed; by default "
    "0.4.",
)
_EXAMPLES = FLAGS.integer(
    "examples", IMAGENET, "The number of images per epoch; by default that of ImageNet-1k.", 1
)
_SEARCH = FLAGS.switch(
    "search",
    False,
    "Search for the fastest remat policy, microbatches and mesh that fit in memory.",
)
_TRIES = FLAGS.integer(
    "tries",
    None,
    "The maximum number of combinations of settings to compile; by default 12 with --search, else "
    "4.",
    lower_bound=0,
)
_TOP = FLAGS.integer("top", 0, "The number of most expensive instructions to list.", lower_bound=0)
_DUMP_HLO = FLAGS.path("dump_hlo", "The file to which the text of the compiled step is written.")
_JSON = FLAGS.switch("json", False, "Print JSON instead of tables.")


@COMMAND.runs
def main() -> None:
    """Compile a train step, and print its memory use and estimated time. With ``--search``, or if
    the step does not fit in memory, also search for better settings."""
    config = _CONFIG.read()
    if _TOPOLOGY.value is None:
        raise UserError("--topology=NAME is missing: give the devices, such as v5e:16x16")
    mfu = ASSUMED_MFU if _MFU.value is None else _MFU.value
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu={mfu}: give a fraction above 0 and at most 1")
    dump = Path(_DUMP_HLO.value) if _DUMP_HLO.value else None
    if dump is not None:
        check_file(dump, "--dump_hlo=", create_parents=False)
    config, work = planned(config)
    with planning():
        print_plan(config, work, mfu, dump)


def print_plan(config: ConfigDict, work: Work, mfu: float, dump: Path | None) -> None:
    """Plan a train step for the devices of ``--topology``; print the plan and the results of any
    search.

    Args:
        config: The resolved configuration of the training.
        work: The kind of train step.
        mfu: The assumed fraction of peak FLOP/s, used only without a compiler for the devices.
        dump: The file to write the text of the compiled program to; None for no file.

    Raises:
        UserError: The topology is invalid, a flag has no effect for this topology, or the train
            step does not fit into memory.
    """
    topology = open_topology(_TOPOLOGY.value, _SLICES.value)
    if _MFU.value is not None and topology.exact:
        raise UserError(
            f"--mfu={mfu} has no effect on {topology.name}: the time of a step is estimated from "
            "the compiled program; leave --mfu out"
        )
    if not topology.exact:
        FLAGS.refuse(["top"], f"on {topology.name}, since no instruction's time is estimated")
    out = plain_console(width=None if sys.stdout.isatty() else 120)
    progress = plain_console(stderr=True)

    note = fit_mesh(config, len(topology.devices))
    if note:
        progress.print(note, soft_wrap=True)
    with apart(_JSON.value):
        plan = make_plan(config, topology, mfu, dump, work)
    if dump and not plan.compiled:
        progress.print(f"{dump} was not written: compilation ran out of memory", soft_wrap=True)
    values = as_json(plan, config, topology, mfu, _EXAMPLES.value, _TOP.value)
    values["mesh_change"] = note
    if not _JSON.value:
        for table in tables(values, topology):
            out.print(table)
    if _SEARCH.value or not plan.fits:
        search = Search(config, topology, mfu, plan, work)
        tries = _TRIES.value if _TRIES.value is not None else 12 if _SEARCH.value else 4
        with apart(_JSON.value):
            search.run(
                tries,
                lambda attempt: progress.print(f"tried {attempt_line(attempt)}", soft_wrap=True),
                first_fit=not _SEARCH.value,
            )
        values["tried"] = attempts_as_json(search.attempts)
        values["advice"] = advice(search)
        if work is not PRETRAINING:
            values["advice"] = with_own_keys(values["advice"])
            for row in values["tried"]:
                row["options"] = with_own_keys(row["options"])
        if not _JSON.value:
            out.print(attempts_table(values["tried"]))
            if plan.fits:
                out.print(values["advice"], soft_wrap=True)
    if _JSON.value:
        print(json.dumps(values, indent=2))
    if not plan.fits:
        raise UserError(
            f"the step does not fit into memory: it needs {gib(plan.memory.total)} on each device, "
            f"which has {gib(plan.memory.limit)}. {values['advice']}"
        )


def planned(config: ConfigDict) -> tuple[ConfigDict, Work]:
    """Return the resolved configuration of the planned training, and its kind of train step.

    Args:
        config: The recipe of a pretraining run, or a protocol that trains a classifier.
    """
    is_protocol = kind_of(config) == "protocol"
    for name, flag in (("encoder", _ENCODER), ("classes", _CLASSES)):
        if flag.value is not None and not is_protocol:
            raise UserError(
                f"--{name}={flag.value} has no effect on a pretraining recipe: leave it out, or "
                "give a protocol, such as --config=finetune_imagenet_l"
            )
    if not is_protocol:
        return resolved(config), PRETRAINING
    if _ENCODER.value is None:
        raise UserError(
            "--encoder=RECIPE is missing: give the encoder that the protocol trains, as a "
            "pretraining recipe such as vit_l, or as a run directory"
        )
    if config.data.source is not None:
        config.data.path = config.data.path or "-"
    protocol = resolve_evaluation(config)
    if is_run(epath.Path(_ENCODER.value)):
        encoder = read_run(epath.Path(_ENCODER.value))
    else:
        encoder = resolved(load(_ENCODER.value, "recipe", flag="encoder"))
    return classifier_work(protocol, encoder, _ENCODER.value, _CLASSES.value or 1000)


def resolved(recipe: ConfigDict) -> ConfigDict:
    """Return the resolved configuration of a recipe, which may lack the path of the data because
    the planner reads no data."""
    recipe.data.path = recipe.data.path or "-"
    return resolve(recipe)


def advice(search: Search) -> str:
    """Return a sentence with the best settings of a search, or with advice if no settings fit."""
    if search.best:
        options = search.best.choice.options
        return f"The fastest settings that fit are {options} ({attempt_line(search.best)})"
    smallest = search.smallest
    return (
        f"None of the {len(search.attempts)} settings tried fits; the smallest needs "
        f"{gib(smallest.plan.memory.total)} ({attempt_line(smallest)}). Use more devices, or a "
        "smaller config.batch_size or model"
    )
