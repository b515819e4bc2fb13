"""Signals, from the first line of a command to the end of its process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from can_jax.distributed.preemption import SIGNALS
from tests.helpers.runs import ROOT, command, heeding_signals

PRELUDE = """
import hashlib, os, signal, subprocess, sys, threading, time
from can_jax.distributed import preemption
preemption.GRACE_SECONDS = 0.5
handler = preemption.handler
handler.install()
print("ready", flush=True)
"""
SPIN = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # the main thread never leaves it
POLL = """
handler.defer()
print("polls", flush=True)
while not handler.requested or time.monotonic() < saved_at:
    time.sleep(0.01)
print("saved", flush=True)
sys.exit(handler.exit_code)
"""


def started(program, ignored=()):
    process = subprocess.Popen(
        heeding_signals([sys.executable, "-c", PRELUDE + program], ignored), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process, *signals, pause=0.0):
    """The exit code and the output after these signals."""
    for number in signals:
        process.send_signal(number)
        time.sleep(pause)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def handles(pid, number):
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (number - 1) & 1)


@pytest.mark.parametrize("number", SIGNALS)
def test_command_that_still_imports_is_stopped_as_promised(recipe, tmp_path, number):
    process = subprocess.Popen(
        heeding_signals(command(recipe, tmp_path / "run")), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not handles(process.pid, signal.SIGHUP):  # Python itself handles Ctrl-C before
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(0.05)
    code, out, err = ended(process, number)
    assert code == (130 if number == signal.SIGINT else 75) and not out
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    assert err == (
        f"stopped by {name}: there was nothing new to save; run the same command to resume\n"
    )
    assert not (tmp_path / "run").exists()


def test_signal_during_a_compilation_gives_the_promised_code(recipe, tmp_path):
    """XLA compiles in a thread of its own, which goes on while the process exits."""
    options = ["model.depth=16", "model.scan=False", "probe.every_steps=0", "figures.every_steps=0"]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            heeding_signals(command(recipe, tmp_path / "run", *options)), cwd=ROOT, stdout=output,
            stderr=output, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": ""},
        )  # fmt: skip
        while "compiling the train step" not in (text := (tmp_path / "output").read_text()):
            assert process.poll() is None, text
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75, (tmp_path / "output").read_text()


def test_signal_waits_for_the_end_of_an_import(tmp_path):
    """An exception within the import of a C++ library ends in a segmentation fault."""
    slow = "import time; print('importing', flush=True); time.sleep(1); print('imported')"
    (tmp_path / "slow.py").write_text(slow)
    process = started(
        f"preemption.GRACE_SECONDS = 60; sys.path.append({str(tmp_path)!r}); "
        "import slow; time.sleep(60); print('slept')"
    )
    assert process.stdout.readline() == "importing\n"
    code, out, err = ended(process, signal.SIGTERM)
    assert code == 75 and out == "imported\n"
    assert err.startswith("stopped by SIGTERM: there was nothing new to save")


DROPS = """
preemption.GRACE_SECONDS = 60

class Dropping:
    def __del__(self):
        print("inside", flush=True)
        time.sleep(60)

Dropping()
print("outside", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_exit_that_python_drops_is_raised_again(number, code):
    process = started(DROPS)
    assert process.stdout.readline() == "inside\n"
    ended_with, out, err = ended(process, number)
    assert (ended_with, out) == (code, "outside\n")
    assert err.count("\n") == 1 and err.startswith("stopped by ")


@pytest.mark.parametrize("program", ["time.sleep(60)", SPIN])
def test_signal_ends_what_has_nothing_to_save(program):
    code, _, err = ended(started(program), *[signal.SIGTERM] * 20, pause=0.005)
    assert code == 75 and err.count("\n") == 1 and err.startswith("stopped by SIGTERM: ")


def test_what_swallows_the_end_is_ended_all_the_same():
    program = (
        "while True:\n    try:\n        time.sleep(60)\n    except BaseException:\n        pass"
    )
    assert ended(started(program), signal.SIGHUP)[0] == 75


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGTERM] * 5, 75),
        ([signal.SIGHUP], 75),
        ([signal.SIGINT], 130),
        ([signal.SIGTERM, signal.SIGINT], 130),  # a launcher's, beside a terminal's
        ([signal.SIGINT, signal.SIGTERM, signal.SIGINT], 130),  # passed on by another program
    ],
)
def test_loop_saves_first(signals, code):
    process = started("saved_at = time.monotonic() + 0.4" + POLL)
    assert process.stdout.readline() == "polls\n"
    assert ended(process, *signals) == (code, "saved\n", "")


def test_second_ctrl_c_does_not_wait():
    process = started("saved_at = time.monotonic() + 60" + POLL)
    assert process.stdout.readline() == "polls\n"
    code, out, err = ended(process, signal.SIGINT, signal.SIGTERM, signal.SIGINT, pause=0.7)
    assert (code, out) == (130, "") and err.startswith("ended at once; ")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0)])
def test_exit_code_that_is_decided_stays(number, code):
    process = started("handler.finish(0)\nprint('done', flush=True)\ntime.sleep(1.5)")
    assert process.stdout.readline() == "done\n"
    assert ended(process, number, number, pause=0.7)[0] == code


def test_ignored_signals_stay_ignored():
    """As by ``nohup``."""
    process = started("time.sleep(0.4); print('on', flush=True)", ignored=[signal.SIGHUP])
    assert ended(process, signal.SIGHUP) == (0, "on\n", "")


def test_forked_process_is_its_own():
    program = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside a thread, from Python 3.12
child = os.fork()
if not child:
    time.sleep(60)
os.kill(child, signal.SIGTERM)
_, status = os.waitpid(child, 0)
time.sleep(0.2)
print(os.WTERMSIG(status), handler.requested, flush=True)
"""
    assert ended(started(program)) == (0, "15 None\n", "")


def test_no_signal_is_lost_when_a_command_starts_itself_once_more():
    program = (
        "import os, signal, sys\nfrom can_jax.distributed import preemption\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, preemption.SIGNALS)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "os.execv(sys.executable, [sys.executable, '-c', "
        "'from can_jax.distributed.preemption import handler; handler.install(); '"
        "'import time; time.sleep(9)'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=os.environ)
    assert done.returncode == 75
