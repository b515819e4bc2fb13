"""`python -m can_jax.main --data=DIR --for=2h`, or `… --config=RECIPE --workdir=DIR`

Pretrains an encoder on images, and writes checkpoints and metrics to a run directory. Re-running
the command resumes from the latest checkpoint. With `--data`, the command chooses a recipe, batch
size, memory settings and precision that suit the devices and the images. The command prints each
chosen setting, and the reason for the choice. `--for` sets the length of the run: a time such as
`2h`, or a number such as `100epochs`, `5000steps` or `1e7images`. `--config.key=value` sets any key
of the recipe.

To train on several hosts, run the same command on each of them. On Cloud TPU, GKE, SLURM and Open
MPI, the processes find each other without further options.
"""

import json
import os
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from can_jax.checkpoint.resume import CHANGES
from can_jax.cli.command import Command
from can_jax.cli.job import Job
from can_jax.cli.length import parse_length
from can_jax.cli.reference import keys_help, recipes_help, settings_text
from can_jax.utils.errors import UserError


def named(argv: list[str], *names: str) -> bool:
    """Return whether a command line contains at least one of the options ``names``."""
    given = {argument.lstrip("-").split("=")[0] for argument in argv if argument[:1] == "-"}
    return not given.isdisjoint(names)


def with_recipe(argv: list[str]) -> list[str]:
    """Add a provisional ``--config`` to a command line that has ``--data`` but no recipe.

    The options ``--config.KEY`` can be parsed only if a recipe is given. The function `chosen`
    later replaces the provisional recipe by the recipe that suits the devices.
    """
    if named(argv, "data") and not named(argv, "config"):
        return ["--config=vit_s", *argv]
    return argv


COMMAND = Command(__doc__, complete=with_recipe, more_help=lambda: recipes_help() + keys_help())
FLAGS = COMMAND.flags
_CONFIG = FLAGS.recipe("recipe")
_DATA = FLAGS.path(
    "data",
    "The path of the images: a folder, shards or arrays. The command chooses suitable settings.",
    web=True,
)
_FOR = FLAGS.text(
    "for", None, "The length of the run, such as 2h, 100epochs, 5000steps or 1e7images."
)
_WORKDIR = FLAGS.path(
    "workdir",
    "The run directory, the same for all hosts; it may be a URL such as gs://…. With --data, the "
    "default is runs/NAME, where NAME derives from the path of the data.",
)
_PRINT_CONFIG = FLAGS.switch("print_config", False, "Print the resolved configuration, and exit.")
_QUIET = FLAGS.switch("quiet", False, "Print warnings and errors only; log.txt has the rest.")
_JSON_LOGS = FLAGS.switch("json_logs", False, "Print every line as a JSON object.")
_PROFILE = FLAGS.switch("profile", False, "Write a profiler trace of five steps for TensorBoard.")
_DUMP_HLO = FLAGS.switch(
    "dump_hlo", False, "Write the compiled train step to hlo.txt in the run directory."
)
_ALLOW_CHANGES = FLAGS.items(
    "allow_changes",
    [],
    f"Settings that a resumed run may change, separated by commas: {', '.join(CHANGES)}.",
)
JOB = Job(FLAGS)


@COMMAND.runs
def main() -> None:
    """Pretrain an encoder as configured by the flags."""
    from can_jax.monitoring.console import console_output
    from can_jax.utils.extras import require_input
    from can_jax.utils.files import check_directory

    config, given = _CONFIG.read(), dict(_CONFIG.overrides)
    if _FOR.value is not None:
        key, value = parse_length(_FOR.value)
        if other := next((name for name in given if name.startswith("total_")), None):
            raise UserError(
                f"--for={_FOR.value} and --config.{other} both set the length of the run: give one "
                "of them"
            )
        given[key] = value
    if _DATA.value is not None:
        if "data.path" in given:
            raise UserError(
                "--data and --config.data.path both set the path of the data: give one of them"
            )
        given["data.path"] = _DATA.value
    workdir = _WORKDIR.value
    if workdir is None and _DATA.value is not None:
        workdir = os.path.join("runs", name_of(_DATA.value))
    if workdir is None and not _PRINT_CONFIG.value:
        raise UserError(
            "--workdir=DIR is missing; only with --data is there a default, named after the data"
        )
    if unknown := [name for name in _ALLOW_CHANGES.value if name not in CHANGES]:
        raise UserError(f"--allow_changes={unknown[0]}: choose from {', '.join(CHANGES)}")
    if workdir is not None and not _PRINT_CONFIG.value:
        check_directory(workdir, "--workdir=")
        require_input()
    with console_output(_QUIET.value, _JSON_LOGS.value):
        train(config, given, workdir)


def train(config: ConfigDict, given: dict[str, Any], workdir: str | None) -> None:
    """Connect the processes of the job, choose settings, and train or print the configuration.

    Args:
        config: The configuration of the recipe, with the values from the command line.
        given: The values that the command line sets, by dotted configuration key.
        workdir: The path of the run directory; it may be None with ``--print_config``.
    """
    from can_jax.train.pretrain import pretrain

    JOB.join()
    path = epath.Path(workdir or "runs/new")
    if _DATA.value is not None or _FOR.value is not None:
        config = chosen(config, given, path)
    if _PRINT_CONFIG.value:
        print(settings_text(config))
        return
    options = {"profile": _PROFILE.value, "dump_hlo": _DUMP_HLO.value}
    pretrain(config, path, given, _ALLOW_CHANGES.value, **options)


def chosen(recipe: ConfigDict, given: dict[str, Any], workdir: epath.Path) -> ConfigDict:
    """Choose settings for the devices, the data and the training time; print and return them.

    A resumed run keeps its stored settings, except for two kinds: settings from the command line,
    and settings that adapt the run to other devices without changing the results.

    Args:
        recipe: The configuration of the recipe, with the values from the command line.
        given: The values that the command line sets, by dotted configuration key.
        workdir: The path of the run directory, which may not exist yet.

    Returns:
        The configuration with the chosen settings.
    """
    from can_jax.checkpoint.run_directory import read_config
    from can_jax.cli.recipe import load
    from can_jax.config.durations import keep_overrides
    from can_jax.data.sources.survey import survey
    from can_jax.distributed.hardware import attached_devices
    from can_jax.monitoring.console import fact_table, output, plain_console
    from can_jax.train.choices import AUTOMATIC_EPOCHS, Choice, choose, recipe_for

    devices = attached_devices()
    stored = (workdir / "config.json").exists()
    named_by_user = named(COMMAND.given_argv, "config")
    choices: list[Choice] = []
    if stored:
        recipe = read_config(workdir)
        unread = "; --config is not read again" if named_by_user else ""
        choices.append(Choice("config", "as stored", f"stored when the run began{unread}"))
    elif not named_by_user:
        name = recipe_for(devices)
        recipe = load(name, "recipe")
        choices.append(Choice("config", name, f"{devices.count} x {devices.kind}"))
        if devices.platform != "cpu" and not any(key.startswith("total_") for key in given):
            given = given | {"total_epochs": AUTOMATIC_EPOCHS}
    if (elements := [key for key in given if "[" in key]) and (stored or not named_by_user):
        raise UserError(
            f"--config.{elements[0]} sets one element of a tuple, which is only supported in a new "
            "run with --config=NAME: set the whole tuple"
        )
    with recipe.unlocked(), recipe.ignore_type():
        recipe.update_from_flattened_dict({k: v for k, v in given.items() if "[" not in k})
    keep_overrides(recipe, given)
    found = None if stored or _DATA.value is None else survey(_DATA.value, recipe.data.split)
    choices += choose(recipe, given, devices, found, stored)
    facts = {key: f"{value}: {reason}" for key, value, reason in choices}
    title = "Settings of the resumed run" if stored else "Chosen settings"
    if facts and not jax.process_index():
        facts["run directory"] = str(workdir)
        if output.json:
            print(json.dumps({"chosen": facts}), flush=True)
        elif not output.quiet:
            table = fact_table(f"{title}; --config.KEY=VALUE overrides them", facts)
            plain_console(width=120, soft_wrap=True, highlight=False).print(table)
    return recipe


def name_of(path: str) -> str:
    """Return the name of the default run directory for a data path, such as ``photos`` for
    ``/data/photos/train``."""
    parts = [part for part in path.split("/") if part and not set(part) & set("*?{}[]:")]
    generic = ("train", "images", "data", ".", "..")
    own = [part for part in parts if part not in generic] or parts or ["run"]
    return own[-1].split(".")[0] or "run"
