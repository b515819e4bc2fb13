"""Entry points of commands, to run as processes or to call as functions.

Each module in `COMMANDS` holds an `Entry`. `Entry.run` imports heavy modules such as JAX only after
`can_jax.cli.process.prepare`.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from can_jax.cli import process

PACKAGE = "can_jax.cli.commands"


class Info(NamedTuple):
    """The module that starts a command by `python -m`, and a summary of the command."""

    module: str
    purpose: str


COMMANDS = {
    "train": Info("can_jax.main", "pretrain an encoder"),
    "evaluate": Info("can_jax.evaluate", "evaluate an encoder by a protocol"),
    "compare": Info("can_jax.evaluate.compare", "write a page that compares evaluations"),
    "report": Info("can_jax.report", "write a page about one run, or several runs side by side"),
    "embed": Info("can_jax.embed", "write the features of every image of a data set"),
    "export": Info("can_jax.export", "export weights to another library, and verify them"),
    "index": Info("can_jax.data.index", "build the index of a data set"),
    "imagenet": Info("can_jax.data.imagenet", "write indexed shards of ImageNet-1k"),
    "plan": Info("can_jax.plan", "estimate memory and time on devices that are not attached"),
    "plan-table": Info("can_jax.plan.table", "update the table of plans in a recipe's docstring"),
    "plan-contrastive": Info(
        "can_jax.plan.contrastive", "estimate the memory of the contrastive loss"
    ),
    "benchmark": Info("can_jax.benchmark", "time the train step or the input pipeline"),
    "study": Info("can_jax.study", "train and evaluate the arms of a study"),
    "check-curve": Info(
        "can_jax.study.healthy", "compare the metrics of a run with reference ranges"
    ),
    "selfcheck": Info("can_jax.selfcheck", "compare this installation with reference vectors"),
    "doctor": Info("can_jax.doctor", "check this machine and this installation"),
    "replay": Info("can_jax.replay", "recompute a failed step from its dump"),
    "recipes": Info("can_jax.recipes", "list the shipped recipes and launchers"),
}


class Entry:
    """A callable that runs a command, and imports the command's module only when called.

    Args:
        name: The name of the command, a key of `COMMANDS`.
    """

    def __init__(self, name: str):
        self.name = name

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run the command in this process, and return the exit code of the command.

        Args:
            argv: The arguments without the program name; by default ``sys.argv[1:]``.
        """
        return self._load()(argv)

    def run(self) -> NoReturn:
        """Prepare this process, run the command, and exit with the command's exit code."""
        process.prepare()
        command = self._load()
        from can_jax.cli.running import run

        run(command)

    def _load(self) -> Any:
        return importlib.import_module(f"{PACKAGE}.{self.name.replace('-', '_')}").main


def console() -> NoReturn:
    """Run the console script `can-jax`, and exit with the command's exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        sys.argv[:2] = [f"can-jax {name}"]
        Entry(name).run()
    if name == "--version":
        from can_jax import __version__

        print(f"can_jax {__version__}")
        sys.exit(0)
    if name == "help" and (sys.argv[2:] or [""])[0] in COMMANDS:
        sys.argv[1:] = [sys.argv[2], "--help"]
        console()
    if name in ("--help", "-h", "help"):
        width = max(map(len, COMMANDS))
        print("can-jax COMMAND [options]; can-jax COMMAND --help lists them\n")
        for command, info in COMMANDS.items():
            print(f"  {command:{width}}  {info.purpose} (python -m {info.module})")
        sys.exit(0)
    print(f"error: {_mistake(name)}see can-jax --help", file=sys.stderr)
    sys.exit(1)


def _mistake(name: str) -> str:
    """Return a message about a first argument that is not a command."""
    from can_jax.utils.errors import printable
    from can_jax.utils.nearest import nearest

    option = name.startswith("-")
    near = nearest(name.partition("=")[0], ["--help", "--version"] if option else list(COMMANDS))
    hint = f"did you mean {near}? " if near else ""
    given = printable(name)
    if not option:
        return f"unknown command {given!r}: {hint}"
    reason = hint or "the command comes first, as in can-jax train --config=NAME; "
    return f"{given} is not a command: {reason}"
