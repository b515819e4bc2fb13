"""The launcher for one machine, with a stand-in for the interpreter that ends as it is told."""

import os
import signal
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "launch" / "local.sh"


def start(tmp_path, body):
    python = tmp_path / "python"
    python.write_text(f"#!/usr/bin/env bash\necho run >> {tmp_path}/runs\n{body}\n")
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python)}
    return subprocess.Popen(
        [SCRIPT, "--config=x"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def runs(tmp_path):
    return len((tmp_path / "runs").read_text().splitlines())


def test_preempted_run_is_started_again(tmp_path):
    process = start(tmp_path, f"[ $(wc -l < {tmp_path}/runs) -ge 3 ] && exit 0 || exit 75")
    assert process.wait(30) == 0
    assert runs(tmp_path) == 3


def test_failed_run_is_not(tmp_path):
    process = start(tmp_path, "exit 1")
    assert process.wait(30) == 1
    assert runs(tmp_path) == 1


def test_signal_reaches_the_run_which_is_waited_for(tmp_path):
    body = "trap 'sleep 1; echo saved; exit 75' TERM; echo ready; while true; do sleep 0.1; done"
    process = start(tmp_path, body)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert "saved" in process.stdout.read()
    assert runs(tmp_path) == 1
