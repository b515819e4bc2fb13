"""What is printed, where it cannot be written."""

import os
import shlex
import subprocess
import sys

import pytest

from can_jax.cli.output import Forgiving
from tests.helpers.runs import ROOT, command, metrics

LIST = [sys.executable, "-m", "can_jax.recipes"]


def listed(redirection):
    """A command by a shell, and its exit code."""
    line = f"'{LIST[0]}' -m can_jax.recipes {redirection}; echo \"code $?\" >&2"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    return done.stderr


@pytest.mark.parametrize(
    ("redirection", "lines"),
    [
        ("> /dev/full", ["WARNING: stdout cannot be written: No space left on device; "]),
        (">&-", []),
    ],
)
def test_command_ends_well_without_its_output(redirection, lines):
    err = listed(redirection)
    assert err.endswith("code 0\n") and err.count("\n") == len(lines) + 1, err
    assert all(line in err for line in lines)


@pytest.mark.parametrize(
    ("redirection", "lines"),
    [("", 1), ("2> /dev/full", 0), pytest.param("2>&-", 0, marks=pytest.mark.slow)],
)
def test_warning_is_printed_once_and_ends_nothing(redirection, lines):
    program = (
        "import orbax.checkpoint\n"  # which makes a handler of its own
        "from absl import logging\nfrom can_jax.cli.command import Command\n"
        "from can_jax.cli.running import run\n"
        "run(Command('').runs(lambda: [logging.warning('%d images', 3), print('done')]))"
    )
    line = f"{shlex.join([sys.executable, '-c', program])} {redirection}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert done.stderr == "WARNING: 3 images\n" * lines


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["2>&1 | head -3", "> /dev/full 2>&1"])
def test_run_goes_on_to_its_end_without_its_output(recipe, tmp_path, redirection):
    line = f"{shlex.join(command(recipe, tmp_path))} {redirection}; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0", done
    assert (tmp_path / "checkpoints/6").exists() and len(metrics(tmp_path)) >= 6
    assert "step 6/6" in (tmp_path / "log.txt").read_text()


def test_closed_pipe_is_reported_once(capfd):
    reader, writer = os.pipe()
    os.close(reader)
    stream = Forgiving(os.fdopen(writer, "w", buffering=1), "stdout")
    for _ in range(3):
        print("a line", file=stream, flush=True)
    assert capfd.readouterr().err == (
        "WARNING: stdout cannot be written: Broken pipe; the command continues\n"
    )


def test_full_disk_is_tried_again(tmp_path, capfd):
    class Full:
        def __init__(self):
            self.full, self.written = True, ""

        def write(self, text):
            if self.full:
                raise OSError(28, "No space left on device")
            self.written += text

    below = Full()
    stream = Forgiving(below, "stdout")
    stream.write("lost")
    below.full = False
    stream.write("found")
    assert below.written == "found" and "No space" in capfd.readouterr().err
