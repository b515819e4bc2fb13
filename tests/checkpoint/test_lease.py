"""The protocol that decides who holds a run directory, in every interleaving of a few processes."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from absl import logging

from can_jax.checkpoint.lease import records
from tests.helpers.lease_model import Holder, Model

ROOT = Path(__file__).parents[2]
A, B, C = (Holder(name, boot=f"kernel of {name}") for name in "ABC")
GONE = {".lock-7": json.dumps(Holder("Z", boot="an older one").owner)}
BEATEN = ("write", "beat", "write")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(records, "WIDTH", 0)
    monkeypatch.setattr(logging, "warning", lambda *_: None)  # a message for each interleaving


def doing(*holders, actions=("write", "write"), **changes):
    return [dataclasses.replace(holder, actions=actions, **changes) for holder in holders]


@pytest.mark.parametrize("files", [
    {}, GONE, {".lock-7": ""}, {"lock.json": GONE[".lock-7"]},
    GONE | {"lock.json": json.dumps(Holder("Y", boot="another").owner)},
], ids=["new", "gone", "cut off", "of an older version", "two"])  # fmt: skip
@pytest.mark.parametrize(("other", "kernel_locks"), [
    (B, True), (Holder("B", boot=A.boot), False), (Holder("B", boot=A.boot, namespace="two"), True)
], ids=["host", "process", "container"])  # fmt: skip
def test_of_two_starts_at_once_exactly_one_gets_in(files, other, kernel_locks):
    holders = doing(A, other, actions=("write",))
    model = Model(holders, files, takeovers=False, kernel_locks=kernel_locks)
    assert model.explore() == [] and model.states > 100
    assert set(model.ends) == {("refused", "done"), ("done", "refused")}


def test_nobody_writes_again_once_another_has_written():
    model = Model(doing(A, actions=BEATEN) + doing(B, actions=("write",)))
    assert model.explore() == [] and model.states > 10_000
    assert ("lost", "done") in model.ends and ("done", "done") in model.ends


def test_the_same_holds_in_a_bucket_where_a_beat_can_bring_a_record_back():
    holders = doing(A, actions=BEATEN, recreates=True) + doing(B, actions=("write",))
    model = Model(holders, kernel_locks=False)
    assert model.explore() == [] and ("lost", "done") in model.ends


@pytest.mark.parametrize("other", [B, Holder("B", boot=A.boot, namespace="two")])
def test_holder_that_crashes_makes_room(other):
    model = Model(doing(A, other, actions=("write",)), crashes=1)
    assert model.explore() == []
    assert ("crashed", "done") in model.ends and ("done", "crashed") in model.ends


def test_suspended_holder_under_the_same_kernel_is_never_taken_for_gone():
    model = Model(doing(A, Holder("B", boot=A.boot, namespace="two"), actions=BEATEN))
    assert model.explore() == []
    assert set(model.ends) == {("refused", "done"), ("done", "refused")}


def test_operation_that_fails_lets_nobody_in():
    model = Model(doing(A, B, actions=("write",)), GONE, takeovers=False, errors=1)
    assert model.explore() == [] and ("done", "failed") in model.ends


def blind(holding):
    holding._taker = lambda: None


def without_removal(holding):
    holding._files.remove = lambda name: None


def without_exclusion(holding):
    def create(name, text):
        holding._files.replace(name, text)
        return True

    holding._files.create = create


@pytest.mark.parametrize(
    ("damage", "takeovers"), [(blind, True), (without_removal, True), (without_exclusion, False)]
)
def test_model_finds_a_protocol_that_is_wrong(damage, takeovers):
    holders = doing(A, actions=BEATEN) + doing(B, actions=("write",))
    assert Model(holders, takeovers=takeovers, change=damage).explore()


@pytest.mark.slow
@pytest.mark.parametrize("case", [
    {"holders": doing(A, B, actions=(*BEATEN, "release")), "crashes": 1},
    {"holders": doing(A, B), "crashes": 1, "errors": 1},
    {"holders": doing(A, B, actions=BEATEN, recreates=True), "kernel_locks": False, "crashes": 1},
    {"holders": doing(A, B, C, actions=("write",)), "files": GONE, "takeovers": False},
], ids=["crash", "crash and error", "bucket", "three"])  # fmt: skip
def test_longer_interleavings(case):
    assert Model(**case).explore() == []


def trials(*flags):
    command = [sys.executable, "-m", "tests.torture.lock", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_of_six_processes_at_once_one_gets_the_lock():
    trials("--trials=12")


@pytest.mark.slow
def test_of_six_processes_at_once_one_gets_the_lock_500_times():
    trials("--trials=500")
