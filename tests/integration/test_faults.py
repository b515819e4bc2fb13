"""What goes wrong in long runs, done to the main command on purpose."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from tests.checkpoint.test_lock import holder
from tests.data.test_dirty import bound_by_permissions
from tests.distributed.test_replica_check import with_one_bit_changed
from tests.helpers.runs import (
    ROOT,
    assert_same_run,
    command,
    contents,
    counting_steps,
    made_once,
    main_in_process,
    metrics,
    run,
    run_in_process,
)

QUIET = [
    "probe.every_steps=0", "figures.every_steps=0", "noise.linear_bound=False",
    "checkpoint.every_steps=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """A run of six steps, with the checkpoints of 2, 4 and 6."""
    make = functools.partial(run_in_process, recipe)
    return made_once(tmp_path_factory, "whole", lambda workdir: make(workdir, *QUIET))[0]


@pytest.mark.parametrize("damage", ["truncated", pytest.param("missing", marks=pytest.mark.slow)])
def test_damaged_checkpoint_is_left_out_and_the_run_ends_the_same(recipe, whole, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    victim = max((workdir / "checkpoints/6/state").rglob("d/*"), key=lambda p: p.stat().st_size)
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-7])
    done = run_in_process(recipe, workdir, *QUIET)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "is damaged" in line)
    assert line.startswith("WARNING: checkpoint ") and str(workdir / "checkpoints/6") in line
    assert "refused_checkpoints/6" in line
    assert "resumed from the checkpoint of step 4" in done.stdout
    assert_same_run(workdir, whole, 6)


@pytest.mark.parametrize("damage", ["a file is missing", "empty folder"])
def test_where_no_checkpoint_is_whole_nothing_is_changed(recipe, whole, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    for step in (2, 4, 6):
        if damage == "empty folder":
            shutil.rmtree(workdir / f"checkpoints/{step}")
            (workdir / f"checkpoints/{step}").mkdir()
        else:
            (workdir / f"checkpoints/{step}/state/_METADATA").unlink()
    before = contents(workdir)
    done = run_in_process(recipe, workdir, *QUIET)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    missing = "seal.json is missing" if damage == "empty folder" else "_METADATA is missing"
    place = workdir / "checkpoints"
    assert f"no checkpoint in {place} is valid; that of step 6 is damaged: " in done.stderr
    assert missing in done.stderr and contents(workdir) == before


def test_empty_checkpoint_of_the_last_step_does_not_end_the_run(recipe, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "checkpoints/6")
    (workdir / "checkpoints/6").mkdir()
    with counting_steps():
        done = run_in_process(recipe, workdir, *QUIET)
    assert done.returncode == 0 and "resumed from the checkpoint of step 4" in done.stdout
    assert "seal.json is missing: the save was not completed" in done.stderr
    assert [line["step"] for line in metrics(workdir)] == list(range(1, 7))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4", "6"]


def test_checkpoint_of_another_model_is_refused_in_one_line(recipe, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    with counting_steps():
        done = run_in_process(recipe, workdir, *QUIET, "model.width=48", "total_steps=8")
    assert done.returncode == 1
    assert done.stderr.startswith("error: checkpoint ") and done.stderr.count("\n") == 1
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4", "6"]


# Programs that take rights from their process and become the command they are given. To do so in
# a fork of this process can hang: JAX has threads here.
BECOME = "os.execv(sys.argv[1], sys.argv[1:])"
# Even root's process then cannot read what is not its to read.
BOUND_BY_PERMISSIONS = """
import ctypes, os, sys
if os.geteuid() == 0:
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP
"""
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
"""


def restricted(recipe, workdir, restrict, *overrides):
    """A run in a process for which less is allowed."""
    return subprocess.run(
        [sys.executable, "-c", restrict + BECOME, *command(recipe, workdir, *QUIET, *overrides)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        # What JAX caches would be cut off, too, and read by the next run: it may read only.
        env=os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"},
    )  # fmt: skip


def limited(recipe, workdir, size, *overrides):
    """A run whose process cannot write files larger than so many bytes."""
    return restricted(recipe, workdir, LIMITED.format(size=size), *overrides)


def test_checkpoint_that_cannot_be_read_is_not_damaged(recipe, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    before = contents(workdir)
    for file in (workdir / "checkpoints/6/state").rglob("d/*"):
        file.chmod(0)
    with bound_by_permissions():
        done = run_in_process(recipe, workdir, *QUIET)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: checkpoint {workdir / 'checkpoints/6'} cannot be read")
    assert "Permission denied" in done.stderr
    for file in (workdir / "checkpoints/6/state").rglob("d/*"):
        file.chmod(0o644)
    assert contents(workdir) == before


def test_directory_that_cannot_be_written_is_one_line(recipe, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    workdir.chmod(0o500)
    with bound_by_permissions():
        done = run_in_process(recipe, workdir, *QUIET, "total_steps=9")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"--workdir={workdir} cannot be written: Permission denied" in done.stderr


@pytest.mark.slow
def test_folder_of_checkpoints_that_cannot_be_written_is_a_failed_save(recipe, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    (workdir / "checkpoints").chmod(0o500)
    done = restricted(recipe, workdir, BOUND_BY_PERMISSIONS, "total_steps=40")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and all("could not be written" in line for line in lines)
    assert "step 12" in lines[2] and "the last saved one: step 6" in lines[2]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of three megabytes, where one can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_full_disk_stops_nothing_until_three_saves_have_failed(recipe, small_disk, tmp_path):
    options = ["total_steps=30", "checkpoint.keep_last=99"]
    done = restricted(recipe, small_disk / "run", "import os, sys\n", *options)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    failed = [line for line in lines if "could not be written" in line]
    good = int(re.search(r"the last saved one: step (\d+)", failed[-1])[1])
    steps = [int(re.search(r"of step (\d+) could", line)[1]) for line in failed]
    # Near the limit, a smaller save can succeed after a failed one, which restarts the count.
    assert [step for step in steps if step > good] == [good + 2, good + 4, good + 6]
    assert {line.split(":")[0] for line in failed[:-1]} == {"WARNING"}
    assert failed[-1].startswith("error:") and lines[-1] == failed[-1]
    assert len(lines) <= len(failed) + 2, lines  # and one about metrics, perhaps
    # Once there is room, the same command ends as a run that nothing happened to.
    again = restricted(recipe, small_disk / "run", "import os, sys\n", *options)
    assert again.returncode == 1 and "Traceback" not in again.stderr
    shutil.copytree(small_disk / "run", tmp_path / "moved")
    done = run(recipe, tmp_path / "moved", *QUIET, *options)
    assert done.returncode == 0, done.stderr
    assert f"resumed from the checkpoint of step {good}" in done.stdout
    done = run(recipe, tmp_path / "peace", *QUIET, *options)
    assert_same_run(tmp_path / "moved", tmp_path / "peace", 30)


@pytest.mark.slow
def test_checkpoint_that_cannot_be_written_is_a_warning_until_it_happens_again_and_again(
    recipe, tmp_path
):
    done = limited(recipe, tmp_path, 40_000, "total_steps=100")
    assert done.returncode == 1, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert [line.split("step ")[1].split()[0] for line in warnings] == ["2", "4"]
    assert all("could not be written" in line and "the run continues" in line for line in warnings)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: the checkpoint of step 6 could not be written")
    assert "third failure in a row" in last
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
    # With room again, the same command does what it would have done.
    assert run_in_process(recipe, tmp_path, *QUIET).returncode == 0
    assert metrics(tmp_path)[-1]["step"] == 6


@pytest.mark.slow
def test_last_good_checkpoint_survives_a_full_disk(recipe, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    done = limited(recipe, workdir, 40_000, "total_steps=9")
    assert done.returncode == 1
    assert "the checkpoint of step 9 could not be saved" in done.stderr
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4", "6"]


def test_start_in_the_directory_of_a_run_is_refused(recipe, tmp_path):
    first = holder(tmp_path)
    try:
        done = run_in_process(recipe, tmp_path, *QUIET)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert f"is in use by process {first.pid} on " in done.stderr
    finally:
        first.kill()
        first.wait()


@pytest.mark.slow
def test_second_run_in_the_same_directory_is_refused(recipe, tmp_path):
    first = subprocess.Popen(
        command(recipe, tmp_path, *QUIET, "total_steps=100000"), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for line in first.stdout:
            if line.startswith("compiled"):
                break
        done = run_in_process(recipe, tmp_path, *QUIET)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert f"is in use by process {first.pid} on " in done.stderr
    finally:
        first.kill()
        first.wait()


@pytest.mark.slow
def test_updates_that_are_not_finite_end_the_run_with_a_capture_that_can_be_replayed(
    recipe, tmp_path
):
    """A file does it: weights that are finite, and too large for any product."""
    np.savez(tmp_path / "large.npz", **{"blocks.0.mlp.fc1.weight": np.full((96, 24), 3e38)})
    done = run_in_process(
        recipe, tmp_path, *QUIET, f"init_from={tmp_path / 'large.npz'}", "total_steps=50",
        "skipped_updates_limit=4",
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: 4 updates in a row were not finite, up to step ")
    (capture,) = (tmp_path / "captures").iterdir()
    assert f"python -m can_jax.replay {capture}" in last
    stored = json.loads((capture / "config.json").read_text())
    stored["probe"]["k"] = stored["optimizer"]["epsilon"] = 0  # as older versions took it
    (capture / "config.json").write_text(json.dumps(stored))
    facts = json.loads((capture / "capture.json").read_text())
    first, last = facts["positions"]
    facts["positions"] = [first, first]  # as if process 0 had had one of the images
    (capture / "capture.json").write_text(json.dumps(facts))
    replay = main_in_process("can_jax.replay", capture)
    assert replay.returncode == 0, replay.stderr
    assert f"16 images at positions {first} to {last} of" in replay.stdout
    assert "loss/total" in replay.stdout and "not finite" in replay.stdout
    assert "encoder/blocks" in replay.stdout


def test_replay_of_another_folder_is_one_line(tmp_path):
    done = main_in_process("can_jax.replay", tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "is not a failed-step dump" in done.stderr


@pytest.mark.slow
def test_sigterm_while_a_checkpoint_is_being_written(recipe, tmp_path):
    """The signal comes when the files are half there."""
    overrides = ["checkpoint.every_steps=2", "probe.every_steps=0", "figures.every_steps=0"]
    overrides += ["total_steps=400", "model.width=240", "model.depth=4", "log_every_steps=50"]
    process = subprocess.Popen(
        command(recipe, tmp_path / "run", *overrides), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    place = tmp_path / "run" / "checkpoints"
    while process.poll() is None and not list(place.glob("*.orbax-checkpoint-tmp")):
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    step = int(errors.split("; step ")[1].split()[0])
    assert max(int(path.name) for path in place.iterdir()) == step < 400
    overrides[3] = f"total_steps={step + 4}"
    done = run(recipe, tmp_path / "run", *overrides)
    assert done.returncode == 0 and f"resumed from the checkpoint of step {step}" in done.stdout
    assert metrics(tmp_path / "run")[-1]["step"] == step + 4


@pytest.mark.slow
def test_what_a_killed_run_did_not_look_at_is_made_up_for(recipe, tmp_path):
    looking = ["probe.every_steps=3", "figures.every_steps=3"]
    assert run_in_process(recipe, tmp_path / "whole", *looking).returncode == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    lines = metrics(tmp_path / "killed")
    assert [line["step"] for line in lines if "probe/knn" in line] == [0, 3, 6]
    kept = [line for line in lines if line["step"] < 6 or "probe/knn" not in line]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    (tmp_path / "killed" / "metrics.jsonl").write_text(text)
    (tmp_path / "killed/figures/step_00000006.png").unlink()
    done = run_in_process(recipe, tmp_path / "killed", *looking)
    assert done.returncode == 0 and "step 6: kNN" in done.stdout, done.stdout + done.stderr
    assert "compiled" not in done.stdout and "figure to open" in done.stdout
    assert_same_run(tmp_path / "killed", tmp_path / "whole", 6)
    assert (tmp_path / "killed/figures/step_00000006.png").exists()
    assert "nothing to do" in run_in_process(recipe, tmp_path / "killed", *looking).stdout


def test_loss_that_jumps_is_a_warning_by_default(recipe, tmp_path):
    def jump(number, state, metrics):
        loss = 9.0 if 115 <= number < 118 else 1.0 + 0.01 * float(np.sin(number))
        return state, metrics | {"loss/total": jnp.float32(loss)}

    options = ["spike.deviations=6", "spike.steps=2", "total_steps=120", "log_every_steps=40"]
    with counting_steps(jump):
        done = run_in_process(recipe, tmp_path, *QUIET, *options, "checkpoint.every_steps=1000")
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "WARNING: the loss was more than 6 standard deviations above its running "
    )
    assert "for 2 steps, up to step 116" in line
    assert "config.spike.rewinds=3 would roll back" in line
    assert [line["step"] for line in metrics(tmp_path)] == [40, 80, 120]


def test_run_goes_back_to_before_the_loss_jumped(recipe, tmp_path):
    jumps = [115, 116, 117]

    def jump(number, state, metrics):
        loss = 1.0 + 0.01 * float(np.sin(number))
        if jumps and number == jumps[0]:
            loss = 9.0
            del jumps[0]
        return state, metrics | {"loss/total": jnp.float32(loss)}

    options = ["spike.deviations=6", "spike.steps=2", "spike.rewinds=1", "total_steps=120"]
    with counting_steps(jump):
        done = run_in_process(
            recipe, tmp_path, *QUIET, *options, "checkpoint.every_steps=20", "log_every_steps=20"
        )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "loss was" in line)
    assert line.endswith("up to step 116; rolling back to the checkpoint of step 100")
    positions = (
        f"the images at positions {16 * 100} to {16 * 118 - 1} of the data order are skipped"
    )
    assert f"resumed from the checkpoint of step 100; {positions}" in done.stdout
    assert [line["step"] for line in metrics(tmp_path)] == [20, 40, 60, 80, 100, 120]


# A loss that does not fall: its ordinary noise is enough.
SPIKES = [
    "spike.deviations=0.5",
    "spike.steps=2",
    "total_steps=160",
    "optimizer.learning_rate=1e-9",
]


@pytest.mark.slow
def test_run_goes_back_to_before_the_loss_jumped_and_passes_over_the_images(recipe, tmp_path):
    options = [*QUIET, *SPIKES, "spike.rewinds=2", "checkpoint.every_steps=10"]
    done = run(recipe, tmp_path / "whole", *options, "checkpoint.keep_last=99")
    lines = done.stderr.splitlines()
    back = [int(line.split("of step ")[1]) for line in lines if "rolling back" in line]
    jumped = [
        int(line.split("up to step ")[1].split(";")[0]) for line in lines if "rolling" in line
    ]
    assert len(back) == 2 and all(a <= b - 2 for a, b in zip(back, jumped, strict=True))
    resumed = [line for line in done.stdout.splitlines() if line.startswith("resumed")]
    first, last = 16 * back[0], 16 * (jumped[0] + 2) - 1  # a loss is read two steps later
    assert resumed[0].endswith(f"at positions {first} to {last} of the data order are skipped")
    steps = [line["step"] for line in metrics(tmp_path / "whole")]
    assert steps == list(range(1, len(steps) + 1))
    # The third time is too often; or the loss did not jump again.
    if done.returncode:
        assert "has rolled back 2 times, the limit of config.spike.rewinds=2" in lines[-1]
    # A run that is stopped on its way goes back at the same steps.
    part = run(recipe, tmp_path / "part", *options, "checkpoint.keep_last=99")
    shutil.rmtree(tmp_path / "part/checkpoints" / str(max(
        int(path.name) for path in (tmp_path / "part/checkpoints").iterdir()
    )))  # fmt: skip
    part = run(recipe, tmp_path / "part", *options, "checkpoint.keep_last=99")
    assert part.returncode == done.returncode
    assert part.stderr.splitlines()[-1:] == lines[-1:] or not done.returncode
    assert (
        metrics(tmp_path / "part")[-1]["loss/total"]
        == metrics(tmp_path / "whole")[-1]["loss/total"]
    )


def test_device_whose_copy_drifts_stops_the_run_before_it_is_saved(recipe, tmp_path):
    def drift(number, state, metrics):
        if number == 5:
            norm = state.parameters["encoder"]["norm"]
            norm["scale"] = with_one_bit_changed(norm["scale"], 3)
        return state, metrics

    with counting_steps(drift):
        done = run_in_process(recipe, tmp_path, *QUIET, devices=8)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    holder = "at step 6, device 3 of process 0 holds a copy of parameters/encoder/norm/scale "
    assert f"{holder}that differs from the copies of other devices" in line
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]
