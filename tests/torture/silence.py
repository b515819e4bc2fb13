"""Measures how long commands print nothing, on a terminal and without one.

    python -m tests.torture.silence --data=FOLDER [--only=train,plan] [--limit=3]

It runs the documented commands one after the other: training on images and on synthetic shapes, and
what follows a run. For each it prints the longest time without output, and the line before it. The
exit code is 1 if a command fails, or prints nothing for longer than the limit. The machine has to
be idle.
"""

import argparse
import os
import pty
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

# In this order: commands read what earlier ones wrote.
COMMANDS: dict[str, str] = {
    "doctor": "doctor",
    "train": "train --data={data} --for=20steps --config.batch_size=32 --workdir={out}/run",
    "shapes": "train --config=quickstart --for=40steps --workdir={out}/shapes",
    "index": "index {data} --out={out}/index",
    "health": "evaluate --config=eval/health --checkpoint={out}/run --workdir={out}/health"
    " --config.data.path={data} --config.data.source=folder",
    "knn": "evaluate --config=eval/knn --checkpoint={out}/shapes --workdir={out}/knn",
    "linear": "evaluate --config=eval/linear --checkpoint={out}/shapes --workdir={out}/linear",
    "finetune": "evaluate --config=eval/finetune --checkpoint={out}/shapes --workdir={out}/finetune"
    " --config.classify.total_epochs=1",
    "robustness": "evaluate --config=eval/robustness --checkpoint={out}/shapes"
    " --workdir={out}/robustness",
    "compare": "compare --runs={out}/knn,{out}/linear --output={out}/compare.html",
    "embed": "embed --checkpoint={out}/run --data={data} --output={out}/features.npz",
    "export": "export --checkpoint={out}/run --format=huggingface --output={out}/weights",
    "report": "report {out}/run {out}/shapes --output={out}/report.html",
    "plan": "plan --config=vit_s --topology=v5e:2x2 --config.batch_size=64",
    "benchmark": "benchmark step --config=small --batch=32",
    "selfcheck": "selfcheck",
}


class Silence(NamedTuple):
    """The longest time without output of a command, in seconds, and the line before it."""

    seconds: float
    after: str
    code: int


def watch(command: list[str], terminal: bool) -> Silence:
    """Run a command, and measure its silences from the start to the exit.

    Args:
        command: The program and its arguments.
        terminal: Whether the command's output is a terminal; otherwise it is a pipe.
    """
    reader, writer = pty.openpty() if terminal else os.pipe()
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=writer, stderr=writer, stdin=subprocess.DEVNULL) as child:
        os.close(writer)
        longest, line, last = 0.0, "(start)", begun
        after = line
        while True:
            ready, _, _ = select.select([reader], [], [], 0.1)
            now = time.monotonic()
            if now - last > longest:
                longest, after = now - last, line
            if not ready:
                continue
            try:
                text = os.read(reader, 2**16).decode(errors="replace")
            except OSError:  # a terminal whose last process has ended
                text = ""
            if not text:
                break
            last, line = now, next((s for s in reversed(text.splitlines()) if s.strip()), line)
        os.close(reader)
        code = child.wait()
    return Silence(longest, after.strip()[:100], code)


def main() -> int:
    """Watch the commands, print a line for each, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a folder of images")
    parser.add_argument("--only", help="names of commands, separated by commas")
    parser.add_argument("--limit", type=float, default=3.0, help="seconds")
    parser.add_argument("--out", type=Path, help="a folder to write to; temporary by default")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp())
    names = arguments.only.split(",") if arguments.only else list(COMMANDS)
    bad = 0
    for name in names:
        for terminal in (True, False):
            folder = out / ("terminal" if terminal else "pipe")
            text = COMMANDS[name].format(data=Path(arguments.data).resolve(), out=folder)
            silence = watch([sys.executable, "-m", "can_jax", *text.split()], terminal)
            bad += silence.code != 0 or silence.seconds > arguments.limit
            kind = "terminal" if terminal else "pipe"
            print(
                f"{name:10} {kind:8} exit {silence.code}, silent for {silence.seconds:4.1f} s "
                f"after: {silence.after}",
                flush=True,
            )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
