"""A run that goes on elsewhere: on other devices, as other processes, after SIGTERM at any time."""

import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from tests.helpers.runs import ROOT, assert_same_run, command, metrics, run, run_in_process
from tests.integration.test_processes import job, with_devices

QUIET = [
    "probe.every_steps=0",
    "figures.every_steps=0",
    "noise.linear_bound=False",
    "model.heads=4",
]


def losses(workdir):
    names = ("loss/total", "loss/contrastive", "loss/reconstruction", "loss/denoising")
    return [[line["step"], *(line[name] for name in names)] for line in metrics(workdir)]


LENGTH = ["total_steps=40", "checkpoint.every_steps=1000", *QUIET]


def part(recipe, workdir, devices, *overrides, until=None):
    """A run on so many devices, told to stop when a step is reached."""
    process = subprocess.Popen(
        command(recipe, workdir, *LENGTH, *overrides), cwd=ROOT, env=with_devices(devices),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    output = ""
    for line in process.stdout:
        output += line
        if until and line.startswith(f"step {until}/"):
            process.send_signal(signal.SIGTERM)
    errors = process.stderr.read()
    assert process.wait(60) == (75 if until else 0), errors
    return output


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("elastic") / "whole"
    part(recipe, workdir, 8)
    return workdir


@pytest.mark.slow
def test_run_of_one_device_resumes_on_eight(recipe, finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "6")
    done = run_in_process(recipe, workdir, "mesh.fsdp=4", devices=8)
    assert done.returncode == 0 and "resumed from the checkpoint of step 3" in done.stdout
    resumed, whole = (
        [line for line in metrics(place) if "loss/total" in line]
        for place in (workdir, finished[0])
    )
    assert [line["step"] for line in resumed] == [line["step"] for line in whole]
    for name in ("loss/total", "loss/contrastive", "loss/reconstruction", "loss/denoising"):
        np.testing.assert_allclose(
            [line[name] for line in resumed], [line[name] for line in whole], rtol=1e-4
        )


@pytest.mark.slow
def test_on_other_devices_the_run_is_the_same(recipe, whole, tmp_path):
    part(recipe, tmp_path, 8, "mesh.fsdp=4", "mesh.shard_state=True", until=6)
    assert "resumed" in part(recipe, tmp_path, 4, "mesh.fsdp=2", "model.attention=xla", until=14)
    assert "resumed" in part(recipe, tmp_path, 1, "model.scan=False", until=22)
    assert "resumed" in part(recipe, tmp_path, 8, "mesh.tensor=2")
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-4)


@pytest.mark.slow
def test_as_other_processes_the_run_is_the_same(recipe, whole, tmp_path):
    part(recipe, tmp_path, 8, until=6)
    with job(recipe, tmp_path, *LENGTH) as processes:
        for line in processes[0].stdout:
            if line.startswith("step 18/"):
                break
        processes[0].send_signal(signal.SIGTERM)
        errors = [process.communicate(timeout=300)[1] for process in processes]
        assert [process.returncode for process in processes] == [75, 75], errors
    part(recipe, tmp_path, 8)
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-4)


BUSY = [
    "total_steps=30", "checkpoint.every_steps=2", "probe.every_steps=2", "figures.every_steps=10",
    "probe.bank=64", "probe.queries=64",
]  # fmt: skip


@pytest.fixture(scope="module")
def watched(recipe, tmp_path_factory):
    """A run with probes, figures and checkpoints at every second step."""
    workdir = tmp_path_factory.mktemp("elastic") / "watched"
    done = run(recipe, workdir, *BUSY)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(("delay", "signs"), [(0.03, 3), (0.0, 1)])
def test_sigterm_while_stepping_probing_or_saving(recipe, watched, tmp_path, delay, signs):
    """Every second step is followed by a probe and a save; the signals come into any of them."""
    process = subprocess.Popen(
        command(recipe, tmp_path, *BUSY), cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("step 4: kNN" if delay else "step 3/"):
            break
    time.sleep(delay)
    for _ in range(signs):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    step = int(errors.split("; step ")[1].split()[0])
    assert step == max(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert metrics(tmp_path)[-1]["step"] == step
    done = run(recipe, tmp_path, *BUSY)
    assert done.returncode == 0 and f"resumed from the checkpoint of step {step}" in done.stdout
    assert_same_run(tmp_path, watched, 30)
