"""What goes wrong in long runs, done to the main command on purpose."""

import resource
import shutil
import subprocess
import sys

import pytest

from tests.runs import ROOT, assert_same_run, command, metrics, run

QUIET = ["probe.every_steps=0", "figures.every_steps=0", "checkpoint.every_steps=2"]


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """A run of six steps, with the checkpoints of 2, 4 and 6."""
    workdir = tmp_path_factory.mktemp("faults") / "whole"
    done = run(recipe, workdir, *QUIET)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_checkpoint_is_left_out_and_the_run_ends_the_same(recipe, whole, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    victim = max((workdir / "checkpoints/6/state").rglob("d/*"), key=lambda p: p.stat().st_size)
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-7])
    done = run(recipe, workdir, *QUIET)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "is damaged" in line)
    assert line.startswith("WARNING: checkpoint ") and str(workdir / "checkpoints/6") in line
    assert "refused_checkpoints/6" in line
    assert "resumed from the checkpoint of step 4" in done.stdout
    assert_same_run(workdir, whole, 6)


def test_where_every_checkpoint_is_damaged_the_run_begins_anew_and_says_so(recipe, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    for step in (2, 4, 6):
        (workdir / f"checkpoints/{step}/state/_METADATA").unlink()
    done = run(recipe, workdir, *QUIET)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("_METADATA is missing") == 3
    assert_same_run(workdir, whole, 6)


def test_checkpoint_of_another_model_is_refused_in_one_line(recipe, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    done = run(recipe, workdir, *QUIET, "model.width=48", "total_steps=8")
    assert done.returncode == 1
    assert done.stderr.startswith("error: checkpoint ") and done.stderr.count("\n") == 1
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4", "6"]


def limited(recipe, workdir, size, *overrides):
    """A run whose process cannot write files larger than so many bytes."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return subprocess.run(
        command(recipe, workdir, *QUIET, *overrides), cwd=ROOT, capture_output=True, text=True,
        timeout=300, preexec_fn=limit,
    )  # fmt: skip


def test_checkpoint_that_cannot_be_written_is_a_warning_until_it_happens_again_and_again(
    recipe, tmp_path
):
    done = limited(recipe, tmp_path, 40_000, "total_steps=100")
    assert done.returncode == 1, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert [line.split("step ")[1].split()[0] for line in warnings] == ["2", "4"]
    assert all("could not be written" in line and "the run goes on" in line for line in warnings)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: the checkpoint of step 6 could not be written")
    assert "third failure in a row" in last
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
    # With room again, the same command does what it would have done.
    assert run(recipe, tmp_path, *QUIET).returncode == 0
    assert metrics(tmp_path)[-1]["step"] == 6


def test_last_good_checkpoint_survives_a_full_disk(recipe, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    done = limited(recipe, workdir, 40_000, "total_steps=9")
    assert done.returncode == 1
    assert "step 9 was reached, but could not be saved" in done.stderr
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4", "6"]


def test_second_run_in_the_same_directory_is_refused(recipe, tmp_path):
    first = subprocess.Popen(
        command(recipe, tmp_path, *QUIET, "total_steps=100000"), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for line in first.stdout:
            if line.startswith("compiled"):
                break
        done = run(recipe, tmp_path, *QUIET)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert f"is in use by process {first.pid} on " in done.stderr
    finally:
        first.kill()
        first.wait()


def test_updates_that_are_not_finite_end_the_run_with_a_capture_that_can_be_replayed(
    recipe, tmp_path
):
    done = run(
        recipe, tmp_path, *QUIET, "optimizer.learning_rate=1e38", "total_steps=50",
        "skipped_updates_limit=4",
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: 4 updates in a row were not finite, up to step ")
    (capture,) = (tmp_path / "captures").iterdir()
    assert f"python -m can_jax.replay {capture}" in last
    replay = subprocess.run(
        [sys.executable, "-m", "can_jax.replay", str(capture)], cwd=ROOT, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert replay.returncode == 0, replay.stderr
    assert "16 images at positions " in replay.stdout
    assert "loss/total" in replay.stdout and "not finite" in replay.stdout
    assert "encoder/blocks" in replay.stdout


def test_replay_of_what_is_no_capture_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "can_jax.replay", str(tmp_path)], cwd=ROOT, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "is no capture" in done.stderr
