"""The short form of `python -m tests.torture.fuzz`, and whether it would see what it is for."""

import sys
import time

import pytest

from tests.torture import fuzz
from tests.torture.readers import READERS


def test_changed_files_are_read_or_refused_in_one_line():
    counts = fuzz.fuzz(list(READERS), 200)
    assert not fuzz.failures(counts)
    assert all(sum(results.values()) == 200 for results in counts.values())
    for name in READERS.keys() - {"image", "tfrecord"}:  # which leave out what is damaged
        assert counts[name]["refused"] > 20, counts[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_changed_files(name):
    assert not fuzz.failures(fuzz.fuzz([name], 2000, seed=1))


def fill(_):
    _, most = fuzz.memory()
    bytearray(b"x") * (most + fuzz.MEMORY)


def raise_two_lines(_):
    from can_jax.utils.errors import UserError

    raise UserError("a\nb")


@pytest.mark.parametrize(
    ("read", "result"),
    [(fill, "memory"), (raise_two_lines, "several lines"), (lambda _: 1 / 0, "ZeroDivisionError")],
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
