import os
import subprocess
import sys

import pytest

from can_jax.distributed import runtime
from can_jax.distributed.runtime import assert_equal_across_processes, detect_launcher, gather

SLURM = {"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        (SLURM, "SLURM"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        ({"SLURM_NTASKS": "4"}, None),  # inside a job, but not a task of it
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
    ],
)
def test_what_starts_several_processes_is_recognised(monkeypatch, environment, found):
    for name in (*SLURM, "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("glob.glob", lambda pattern: [])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert detect_launcher() == found


def test_tpu_chips_are_recognised_by_their_files_and_their_library(monkeypatch):
    monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else [])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "libtpu" or None)
    assert detect_launcher() == "Cloud TPU"


def test_single_process_agrees_with_itself():
    assert_equal_across_processes("configuration", "x")
    assert gather("numbers", [1, 2]).tolist() == [[1, 2]]


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_waiting_ends_with_one_line():
    program = (
        "import time\nfrom can_jax.distributed.runtime import abort_after\n"
        "with abort_after(0.5, 'nobody came'):\n    time.sleep(60)"
    )
    done = run(program)
    assert (done.returncode, done.stderr) == (70, "error: nobody came\n")


def test_process_that_loses_another_while_it_joins_ends_with_one_line():
    program = (
        "import os, jax\nfrom can_jax.distributed.runtime import start\n"
        "jax.distributed.initialize = lambda *_, **__: os.abort()  # as JAX's service does\n"
        "start('localhost:1', 2, 1, 10)"
    )
    done = run(program)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 70 and "another process of the job, or its host, has died" in last


def test_process_at_its_end_keeps_its_exit_code():
    """As when Ctrl-C ended it alone, and JAX aborts it while it waits for the others."""
    program = (
        "import os\nfrom can_jax.distributed import abort, preemption\n"
        "abort.abort_on_sigabrt('another process is gone')\n"
        "preemption.handler.finish(130)\nos.abort()"
    )
    done = run(program)
    assert (done.returncode, done.stderr) == (130, "")


def test_state_of_a_checkout_is_read_without_a_write(monkeypatch, tmp_path):
    module = tmp_path / "can_jax" / "distributed" / "runtime.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(runtime, "__file__", str(module))
    assert runtime.commit() is None
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    os.utime(module, (0, 0))  # A status would refresh the index, under a lock.
    index = tmp_path / ".git" / "index"
    before = index.read_bytes()
    assert len(runtime.commit()) == 40 and index.read_bytes() == before
    module.write_text("changed")
    assert runtime.commit().endswith("+changes")
