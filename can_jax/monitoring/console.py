"""The console output of a run: tables at the start, status lines, and a progress bar."""

import contextlib
import dataclasses
import io
import json
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from can_jax.monitoring.jsonl import finite_or_none
from can_jax.monitoring.run_log import RunLog
from can_jax.monitoring.timing import Window
from can_jax.objectives import OBJECTIVES
from can_jax.utils.progress import Phase, end_line

WIDTH = 120  # characters of a line in a file
# The seconds for which a run without a terminal shows its progress between status lines. Afterwards
# only status lines are printed, so that the log file of a long run stays short.
GROWING_SECONDS = 600.0


def plain_console(**options: Any) -> Console:
    """Return a Rich console that prints brackets and colons literally.

    By default, Rich interprets text in brackets as a style and a word between colons as an emoji,
    and both can occur in paths.

    Args:
        options: Keyword arguments of `rich.console.Console`.
    """
    return Console(**options, markup=False, emoji=False)


def duration(seconds: float) -> str:
    """Format a number of seconds as a short text, such as `3h 07m`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole // 60 % 60:02d}m"
    return f"{whole // 86400}d {whole // 3600 % 24:02d}h"


def parameter_table(parameters: Any) -> Table:
    """Return a table with the array count, parameter count and largest array of each module."""
    table = Table("part", "arrays", "parameters", "largest array", title="Parameters")
    for column in table.columns[1:3]:
        column.justify = "right"
    groups: dict[str, list[Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
        keys = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        groups.setdefault("/".join(keys[:2]), []).append(leaf)
    total = 0
    for name, leaves in groups.items():
        count = sum(leaf.size for leaf in leaves)
        largest = max(leaves, key=lambda leaf: leaf.size)
        table.add_row(name, str(len(leaves)), f"{count:,}", "x".join(map(str, largest.shape)))
        total += count
    table.add_section()
    table.add_row("all", str(len(jax.tree.leaves(parameters))), f"{total:,}", "")
    return table


def contents(table: Table) -> tuple[str, list[str], list[list[str]]]:
    """Return the title, the column headers and the rows of a Rich table as text."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    headers = [str(column.header) for column in table.columns]
    return str(table.title), headers, [list(row) for row in zip(*columns, strict=True)]


def device_table(mesh: Mesh) -> Table:
    """Return a table with the devices of each process, titled with the shape of the mesh."""
    shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    table = Table("process", "devices", "kind", title=f"Mesh: {shape}")
    owners = np.array([device.process_index for device in mesh.devices.flat])
    for process in np.unique(owners):
        devices = [device for device in mesh.devices.flat if device.process_index == process]
        mine = " (this one)" if process == jax.process_index() else ""
        table.add_row(f"{process}{mine}", str(len(devices)), devices[0].device_kind)
    return table


def fact_table(title: str, facts: dict[str, Any]) -> Table:
    """Return a table with the name and value of each fact."""
    table = Table(title=title, show_header=False)
    for name, value in facts.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    return table


@dataclasses.dataclass
class Output:
    """The format of the console output of this process.

    Attributes:
        quiet: Whether only warnings and errors are printed.
        json: Whether each line is printed as a JSON object.
    """

    quiet: bool = False
    json: bool = False


output = Output()


@contextlib.contextmanager
def console_output(quiet: bool, json: bool) -> Iterator[None]:
    """Set the format of the console output while the context is active."""
    output.quiet, output.json = quiet, json
    Phase.quiet = quiet or json
    try:
        yield
    finally:
        output.quiet = output.json = Phase.quiet = False


class Clock(Protocol):
    """The interface of a timed run's clock; `can_jax.train.pace.Pace` implements it."""

    def left(self) -> float:
        """Return the remaining time of the run in seconds."""
        ...

    def share(self) -> float:
        """Return the fraction of the run's time that has passed, between 0 and 1."""
        ...


class Reporter:
    """A printer of messages, status lines and the progress of training. Only process 0 prints.

    Attributes:
        clock: The clock of a timed run; None if the run has a fixed number of steps.

    Args:
        first_step: The step from which the run starts or resumes.
        total_steps: The number of steps of the whole run; not used for a timed run.
        log: The log file to which the messages are also written; None for no log file.
    """

    def __init__(self, first_step: int, total_steps: int, log: RunLog | None = None):
        width = None if sys.stdout.isatty() else WIDTH
        quiet = jax.process_index() != 0
        self.console = plain_console(width=width, quiet=quiet, soft_wrap=True, highlight=False)
        self._total, self._log = total_steps, None if quiet else log
        self.clock: Clock | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[left]}"),  # the estimate of the status line, not another one
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("training", total=1.0, left="")
        self._growing: Phase | None = None
        self.advance(first_step)

    def say(self, message: Any) -> None:
        """Print a message above the progress bar, and write it to the log file."""
        if isinstance(message, str):
            text = f"{message}\n"
        else:
            rendered = io.StringIO()
            plain_console(file=rendered, width=WIDTH, highlight=False).print(message)
            text = rendered.getvalue()
        end_line()
        if output.json:
            self._print_json({"message": text.rstrip("\n")})
        elif not output.quiet:
            self.console.print(message)
        if self._log:
            self._log.say(text)

    def _print_json(self, values: dict[str, Any]) -> None:
        """Print values as one line of JSON, with the current time."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if not self.console.quiet:
            print(json.dumps({"time": moment} | values), flush=True)

    def start_progress(self) -> None:
        """Show the progress between status lines, unless the output is quiet or JSON.

        A terminal shows a progress bar. In a file or pipe, updates are appended to a progress line.
        The progress line ends after `GROWING_SECONDS`.
        """
        if output.quiet or output.json or self.console.quiet:
            return
        if self.console.is_terminal:
            self._bar.start()
        else:
            self._growing = Phase("training", None)
            self._growing.start()

    def advance(self, step: int) -> None:
        """Update the progress to the given step."""
        if self.clock:
            done, position = self.clock.share(), f"step {step}"
        else:
            done, position = step / self._total, f"step {step}/{self._total}"
        self._bar.update(self._task, completed=done, description=f"training, {position}")
        if self._growing:
            self._growing.detail(position)
            if self._growing.seconds > GROWING_SECONDS:
                self.stop_progress()

    def status(self, step: int, values: dict[str, float], window: Window) -> None:
        """Print a status line with the metrics, the current time and the estimated time left.

        Args:
            step: The current step.
            values: The metrics of the step, by name.
            window: The timing of the steps since the previous status line.
        """
        if self.clock:
            position = f"step {step} ({100 * self.clock.share():.0f}% of the time)"
            remaining = self.clock.left()
        else:
            position = f"step {step}/{self._total}"
            remaining = (self._total - step) * window.step_seconds
        left = f"ETA {duration(remaining)}"
        self._bar.update(self._task, left=left)
        epoch = values["epoch"]
        parts = [
            position,
            time.strftime("%H:%M:%S"),
            f"epoch {epoch:.2f}" if epoch < 100 else f"epoch {epoch:.0f}",
            f"loss {values['loss/total']:.4f}",
        ]
        losses = {name: f"loss/{name}" for name in OBJECTIVES}
        parts += [f"{name} {values[key]:.4f}" for name, key in losses.items() if key in values]
        if "denoising/explained" in values:
            parts.append(f"noise explained {100 * values['denoising/explained']:.0f}%")
        rate = values["images_per_second"]
        parts += [
            f"lr {values['learning_rate']:.2e}",
            f"{rate:.0f} images/s" if rate >= 10 else f"{rate:.2f} images/s",
            *([f"MFU {100 * values['mfu']:.1f}%"] if "mfu" in values else []),
            *([f"data wait {100 * values['data_wait']:.0f}%"] if "data_wait" in values else []),
            left,
        ]
        line = " | ".join(parts)
        if output.json:
            fields = {"step": step, "eta_seconds": round(remaining, 1)}
            self._print_json(fields | finite_or_none(values))
            if self._log:
                self._log.say(line)
        else:
            self.say(line)

    def stop_progress(self) -> None:
        """Stop the progress display that `start_progress` started."""
        self._bar.stop()
        if self._growing:
            end_line()  # without the words that end the line of an operation
            self._growing.end()
            self._growing = None

    def close(self) -> None:
        """Stop showing the progress; `contextlib.closing` calls this method."""
        self.stop_progress()
