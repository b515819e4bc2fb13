"""Several processes as one job, by the main command; and one process over eight devices."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from can_jax.distributed.runtime import HEARTBEAT_SECONDS
from tests.data.samples import encode
from tests.helpers.runs import ROOT, command, main_in_process, metrics, run_in_process

QUIET = ["probe.every_steps=0", "figures.every_steps=0", "noise.linear_bound=False"]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def with_devices(count):
    return os.environ | {"JAX_NUM_CPU_DEVICES": str(count), "JAX_PLATFORMS": "cpu"}


def job(recipe, workdir, *overrides, **options):
    """Processes of the main command."""
    return job_of(command(recipe, workdir, *overrides), **options)


@contextlib.contextmanager
def job_of(arguments, count=2, own=((), ()), before=((), ())):
    """Processes of four devices each, each with options and a wrapper of its own."""
    port = free_port()
    started = [
        subprocess.Popen(
            [
                *before[i], *arguments,
                f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={i}",
                "--start_timeout=60", *own[i],
            ],
            cwd=ROOT, env=with_devices(4), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in range(count)
    ]  # fmt: skip
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "axes"),
    [
        (20, []),
        (20, ["mesh.data=1", "mesh.fsdp=2", "mesh.tensor=4"]),
    ],
)
def test_two_processes_give_the_loss_curve_of_one(recipe, tmp_path, steps, axes):
    """The second mesh splits parameters over the devices of a process, which have the same rows."""
    options = [f"total_steps={steps}", "model.heads=4", *axes, *QUIET]
    with job(recipe, tmp_path / "two", *options) as processes:
        outputs = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
    assert "0 (this one) │ 4" in outputs[0][0] and "1            │ 4" in outputs[0][0]
    assert "Mesh" not in outputs[1][0]  # one process speaks
    one = run_in_process(recipe, tmp_path / "one", *options, devices=8)
    assert one.returncode == 0, one.stderr
    curves = [
        [[line[name] for name in line if name.startswith("loss/")] for line in metrics(workdir)]
        for workdir in (tmp_path / "two", tmp_path / "one")
    ]
    assert np.shape(curves[0]) == (steps, 4)
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-5)


@pytest.mark.slow
def test_two_processes_evaluate_an_encoder_that_they_shard(recipe, tmp_path):
    run = tmp_path / "run"
    assert run_in_process(recipe, run, *QUIET).returncode == 0
    options = [f"--checkpoint={run}", "--config=health", "--config.batch_size=16"]
    options += ["--config.data.source=shapes"]
    sharded = ["--config.mesh.data=1", "--config.mesh.fsdp=8", f"--workdir={tmp_path / 'two'}"]
    with job_of([sys.executable, "-m", "can_jax.evaluate", *options, *sharded]) as processes:
        outputs = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
    one = main_in_process("can_jax.evaluate", *options, f"--workdir={tmp_path / 'one'}")
    assert one.returncode == 0, one.stderr
    found, wanted = (
        json.loads((tmp_path / n / "results.json").read_text()) for n in ("two", "one")
    )
    assert found["checkpoint"]["sha256"] == wanted["checkpoint"]["sha256"]
    assert found["metrics"] == pytest.approx(wanted["metrics"], rel=1e-4)


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_stops_all_of_them(recipe, tmp_path):
    endless = ["total_steps=100000", "checkpoint.every_steps=100000", *QUIET]
    with job(recipe, tmp_path, *endless) as processes:
        for line in processes[0].stdout:
            if line.startswith("step 3/"):
                break
        processes[1].send_signal(signal.SIGTERM)
        errors = [process.communicate(timeout=120)[1] for process in processes]
        assert [process.returncode for process in processes] == [75, 75], errors
    (saved,) = (path.name for path in (tmp_path / "checkpoints").iterdir())
    assert all(f"step {saved} is saved" in error for error in errors)


def test_process_that_never_comes_is_not_waited_for_endlessly(recipe, tmp_path):
    alone = (["--start_timeout=2"], [])
    started = time.monotonic()
    with job(recipe, tmp_path, count=1, own=alone) as (process,):
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 70 and time.monotonic() - started < 45
    assert errors.startswith("error: the processes of this job did not find each other")
    assert errors.count("\n") == 1 and "within --start_timeout=2 s" in errors


def test_processes_with_different_configurations_are_refused(recipe, tmp_path):
    with job(recipe, tmp_path, own=((), ["--config.seed=1"])) as processes:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    for error in errors:
        assert "process 1 has a different configuration than process 0" in error


@pytest.mark.slow
def test_processes_that_see_different_data_are_refused(recipe, tmp_path):
    for number in range(2):
        for image in range(16 + number):
            path = tmp_path / f"data{number}/{image:02d}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encode(np.full((20, 20, 3), image, np.uint8)))
    shown = tmp_path / "data"  # a folder that each process finds in its own working directory
    own = [
        ["--config.data.source=folder", f"--config.data.path={shown}"],
        ["--config.data.source=folder", f"--config.data.path={shown}"],
    ]
    mounted = [
        ["unshare", "--mount", "bash", "-c",
         f'mount --bind {tmp_path}/data{number} {shown} && exec "$@"', "-"]
        for number in range(2)
    ]  # fmt: skip
    shown.mkdir()
    if subprocess.run([*mounted[0], "true"], capture_output=True).returncode:
        pytest.skip("no folder can be mounted here")
    with job(recipe, tmp_path / "run", own=own, before=mounted) as processes:
        errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    for error in errors:
        assert "process 1 has a different data set than process 0" in error
    assert not (tmp_path / "run/config.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coordinator=a:1", "--processes=2"], ": --process is missing: give"),
        (["--processes=2"], "--coordinator and --process are missing"),
        (
            ["--coordinator=a:1", "--processes=2", "--process=2"],
            "--process=2: give a number from 0 to 1",
        ),
    ],
)
def test_wrong_flags(recipe, tmp_path, options, message):
    done = main_in_process(*command(recipe, tmp_path)[2:], *options)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and message in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
def test_when_one_process_dies_or_hangs_the_other_ends_with_a_reason(
    recipe, tmp_path, sign, victim
):
    endless = ["total_steps=100000", "checkpoint.every_steps=3", *QUIET]
    with job(recipe, tmp_path, *endless) as processes:
        for line in processes[0].stdout:
            if line.startswith("step 4/"):
                break
        processes[victim].send_signal(sign)
        started = time.monotonic()
        errors = processes[1 - victim].communicate(timeout=120)[1]
        assert time.monotonic() - started < HEARTBEAT_SECONDS + 30
        assert processes[1 - victim].returncode == 70, errors[-2000:]
    if sign == signal.SIGSTOP:
        (stacks,) = tmp_path.glob(f"stacks-*-{1 - victim}.txt")
        assert "most recent call first" in stacks.read_text()
    # A thread of JAX may write its own stack trace at the same moment.
    messages = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert messages and "host" in messages[-1], errors[-2000:]
