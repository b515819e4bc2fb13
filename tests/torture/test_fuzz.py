"""The short form of `python -m tests.torture.fuzz`, and whether it would see what it is for."""

import subprocess
import sys
import time

import pytest

from tests.helpers.runs import ROOT
from tests.torture import fuzz
from tests.torture.readers import READERS


@pytest.mark.parametrize("mutations", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_changed_files_are_read_or_refused_in_one_line(mutations):
    counts = fuzz.fuzz(list(READERS), mutations)
    assert not fuzz.failures(counts)
    assert all(sum(results.values()) == mutations for results in counts.values())
    for name in READERS.keys() - {"image", "tfrecord"}:  # which leave out what is damaged
        assert counts[name]["refused"] > mutations / 10, counts[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_changed_files(name):
    assert not fuzz.failures(fuzz.fuzz([name], 2000, seed=1))


def test_much_memory_is_a_failure():
    """In a process that has not had as much before."""
    program = """
from tests.torture import fuzz

def fill(_):
    bytearray(b"x") * (fuzz.memory()[1] + fuzz.MEMORY)

fuzz.MEMORY = 2**26
print(fuzz.outcome(lambda _: bytearray(2**20), None), fuzz.outcome(fill, None))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("read memory: "), done.stderr


def raise_two_lines(_):
    from can_jax.utils.errors import UserError

    raise UserError("a\nb")


@pytest.mark.parametrize(
    ("read", "result"),
    [(raise_two_lines, "several lines"), (lambda _: 1 / 0, "ZeroDivisionError")],
)
def test_what_should_not_be_is_a_failure(tmp_path, read, result):
    assert fuzz.outcome(read, tmp_path).startswith(result)


@pytest.mark.parametrize(
    ("does", "how"),
    [("os.kill(os.getpid(), 11)", "crashes with -11"), ("time.sleep(60)", "hangs")],
)
def test_crash_and_hang_are_seen_from_outside(monkeypatch, does, how):
    monkeypatch.setattr(fuzz, "SECONDS", 0.5)
    began = """print('["began", 7]', flush=True)"""
    command = [sys.executable, "-c", f"import os, time\n{began}\n{does}"]
    started = time.monotonic()
    assert fuzz.watch(command, lambda *_: None) == (7, how)
    assert time.monotonic() - started < 30
