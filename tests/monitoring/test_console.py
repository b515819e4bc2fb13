import contextlib
import json
import math
import re
import time

import jax.numpy as jnp
import pytest
from rich.console import Console

from can_jax.monitoring import console
from can_jax.monitoring.timing import Window
from can_jax.utils import progress


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.2, "7s"), (187.0, "3m 07s"), (11220.0, "3h 07m"), (266400.0, "3d 02h")]
)
def test_durations_read_well(seconds, text):
    assert console.duration(seconds) == text


def test_parameter_table_counts_all():
    tree = {
        "encoder": {"norm": {"scale": jnp.zeros(3), "bias": jnp.zeros(3)}, "token": jnp.zeros(4)}
    }
    recorder = Console(record=True, width=80)
    recorder.print(console.parameter_table(tree))
    text = recorder.export_text()
    assert "encoder/norm" in text and " 10 " in text


@pytest.mark.parametrize("text", ["/a/[abc]*.tar", "runs/x[/y]", "[new] :smile: [bold]b[/]"])
def test_brackets_and_colons_are_printed_as_they_are(capsys, text):
    reporter = console.Reporter(0, 1)
    reporter.say(text)
    console.plain_console(width=200).print(console.fact_table(text, {text: text}))
    out = capsys.readouterr().out
    assert out.splitlines()[0] == text and out.count(text) == 4


@pytest.fixture
def in_a_pipe(monkeypatch):
    """A reporter without a terminal, whose progress is due after hundredths of a second."""
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.02)
    monkeypatch.setattr(progress, "PERIOD", 0.02)
    monkeypatch.setattr(progress, "TICK", 0.005)
    with contextlib.closing(console.Reporter(0, 40)) as reporter:
        yield reporter


def test_progress_between_status_lines_has_a_line_of_its_own(in_a_pipe, capsys):
    in_a_pipe.start_progress()
    in_a_pipe.advance(12)
    printed, end = "", time.monotonic() + 20
    while printed.count("step 12/40, ") < 2 and time.monotonic() < end:
        time.sleep(0.01)
        printed += capsys.readouterr().out
    in_a_pipe.say("step 13/40 | loss 3")
    printed += capsys.readouterr().out
    assert re.match(r"training: step 12/40, \ds step 12/40, \ds", printed)
    assert printed.endswith("\nstep 13/40 | loss 3\n")
    in_a_pipe.close()
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().out == ""


def test_long_run_in_a_pipe_prints_status_lines_only(in_a_pipe, capsys, monkeypatch):
    monkeypatch.setattr(console, "GROWING_SECONDS", 0.0)
    in_a_pipe.start_progress()
    in_a_pipe.advance(12)
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().out == ""


def test_status_with_a_loss_that_is_not_finite_is_valid_json(capsys):
    values = {"epoch": 1.0, "loss/total": math.nan, "grad_norm": math.inf}
    values |= {"images_per_second": 8.0, "learning_rate": 1e-3}
    with console.console_output(quiet=False, json=True):
        console.Reporter(0, 4).status(2, values, Window(2, 1.0, 0.0))
    refused = {"parse_constant": lambda name: pytest.fail(f"{name} is not JSON")}
    line = json.loads(capsys.readouterr().out, **refused)
    assert line["step"] == 2 and line["loss/total"] is line["grad_norm"] is None
