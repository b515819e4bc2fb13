"""Signs of life during long operations."""

import io
import json
import sys
import time

import pytest

from can_jax.utils import progress
from can_jax.utils.progress import end_line, phase


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Signs of life after hundredths of a second, and a cache of the test's own."""
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.02)
    monkeypatch.setattr(progress, "PERIOD", 0.02)
    monkeypatch.setattr(progress, "TICK", 0.005)
    monkeypatch.setattr(progress, "USUAL_FROM", 0.02)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "can_jax" / progress.FILE


def until(capsys, text, seconds=20.0):
    """Wait until a text was printed, and return all that was."""
    printed, end = "", time.monotonic() + seconds
    while text not in printed and time.monotonic() < end:
        time.sleep(0.01)
        printed += capsys.readouterr().out
    assert text in printed
    return printed


def test_long_operation_prints_a_growing_line_and_its_usual_length(quick, capsys):
    with phase("compiling"):
        printed = until(capsys, " 0s 0s")
    printed += capsys.readouterr().out
    assert printed.startswith("compiling: 0s 0s") and "done in 0s" in printed
    assert set(json.loads(quick.read_text())) == {"compiling"}
    quick.write_text('{"compiling": 42}')
    with phase("compiling"):
        until(capsys, "compiling (usually 42s): ")


def test_message_in_between_has_a_line_of_its_own(quick, capsys):
    with phase("restoring"):
        printed = until(capsys, "restoring: ")
        end_line()
        print("step 3")
        printed += until(capsys, "\nrestoring: ")
    assert "\nstep 3\n" in printed


def test_innermost_operation_prints_with_its_detail(quick, capsys):
    with phase("evaluating"):
        until(capsys, "evaluating: ")
        with phase("computing features") as inner:
            inner.detail("2,000 images")
            printed = until(capsys, "2,000 images, 0s")
        assert "evaluating" not in printed.split("computing", 1)[1]


def test_series_of_short_operations_does_not_silence_the_outer_one(quick, capsys, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.2)
    with phase("evaluating"):
        until(capsys, "evaluating: ")
        end = time.monotonic() + 1
        while time.monotonic() < end:
            with phase("computing features"):
                time.sleep(0.05)
    printed = capsys.readouterr().out
    assert printed.count(" 1s") > 3 and "computing" not in printed


def test_short_and_quiet_operations_print_nothing(quick, capsys, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_SECONDS", 60.0)
    with phase("short"):
        pass
    monkeypatch.setattr(progress.Phase, "quiet", True)
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.0)
    with phase("quiet"):
        time.sleep(0.1)
    assert capsys.readouterr().out == ""


def test_line_on_a_terminal_is_rewritten_and_removed(quick, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    with phase("compiling"):
        end = time.monotonic() + 20
        while terminal.getvalue().count("\r") < 2 and time.monotonic() < end:
            time.sleep(0.01)
    assert terminal.getvalue().count("\r\x1b[Kcompiling: 0s") >= 2
    assert terminal.getvalue().endswith("compiling: done in 0s\n")


def test_damaged_or_absent_cache_does_not_matter(quick, monkeypatch):
    quick.parent.mkdir(parents=True)
    quick.write_text("[")
    with phase("compiling"):
        time.sleep(0.06)
    assert "compiling" in json.loads(quick.read_text())
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no")
    with phase("compiling"):
        time.sleep(0.06)
