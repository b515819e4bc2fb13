"""The main command, as a person runs it."""

import contextlib
import itertools
import json
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from can_jax.checkpoint.manager import Checkpointer
from can_jax.config import default_config
from can_jax.data.pipeline.streaming_loader import open_stream
from can_jax.data.sources.registry import open_source
from can_jax.distributed.mesh import make_mesh
from can_jax.encoders.pretrained import open_encoder
from can_jax.evaluate.config import default_evaluation, resolve_evaluation
from can_jax.export.model import open_model
from can_jax.monitoring.glossary import METRICS
from can_jax.train import loop
from can_jax.train.pretrain import check_labels
from can_jax.utils.errors import UserError
from tests.data import samples
from tests.helpers.configs import small_config
from tests.helpers.runs import (
    ROOT,
    assert_same_run,
    command,
    counting_steps,
    main_in_process,
    metrics,
    run,
    run_in_process,
    state_at,
)

QUIET = ["probe.every_steps=0", "figures.every_steps=0"]
# MAE, which compiles in half the time.
LIGHT = [
    "objective.contrastive.weight=0.0", "objective.denoising.weight=0.0", "noise.sigma_max=0.0",
    "augment.views=1", *QUIET,
]  # fmt: skip


def test_run_directory_holds_what_it_should(finished):
    workdir, _ = finished
    config = json.loads((workdir / "config.json").read_text())
    assert config["data"]["image_size"] == [16, 16] and config["batch_size"] == 16
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["versions"]["jax"] and environment["mesh"]["data"] == 1
    assert environment["run"]["steps"] == 6
    assert "encoder/patch_embed/kernel" in (workdir / "parameters.txt").read_text()
    lines = metrics(workdir)
    last = [line for line in lines if "loss/total" in line][-1]
    expected = {
        "step", "examples", "epoch", "loss/total", "loss/contrastive", "loss/reconstruction",
        "loss/denoising", "learning_rate", "grad_norm", "param_norm", "images_per_second", "mfu",
        "data_wait", "embedding/std", "embedding/effective_rank", "embedding/alignment",
        "contrastive/top1", "contrastive/positive_similarity", "contrastive/negative_similarity",
        "skipped_steps",
    }  # fmt: skip
    assert expected <= set(last)
    assert {name for line in lines for name in line} - {"step"} <= set(METRICS)
    assert (last["step"], last["examples"], last["epoch"]) == (6, 96, 1.5)
    assert [line["step"] for line in lines if "probe/knn" in line] == [0, 6]
    assert (workdir / "figures" / "step_00000006.png").stat().st_size > 5000
    assert list((workdir / "tensorboard").iterdir())
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["3", "6"]


def test_output_tells_what_runs_and_what_came_of_it(finished):
    output = finished[1]
    for part in (
        "Parameters", "Mesh: data 1, fsdp 1, tensor 1", "peak learning rate", "compiled the train",
        "kNN accuracy: raw pixels", "step 6/6 | ", "| epoch 1.50 | loss", "| lr ", "| contrastive",
        "| denoising", "MFU", "data wait", "ETA", "kNN, trained encoder", "figure to open",
    ):  # fmt: skip
        assert part in output, part


@pytest.mark.slow
def test_losses_fall_in_a_short_run(recipe, tmp_path):
    options = ["total_steps=60", "log_every_steps=10", "checkpoint.every_steps=60", *QUIET]
    options += ["augment.jitter=0.8", "augment.grayscale=0.2", "augment.blur=0.5"]
    options += ["model.patch_embed=linear"]  # whitening slows the first steps down
    done = run_in_process(recipe, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    lines = [line for line in metrics(tmp_path) if "loss/total" in line]
    assert lines[-1]["loss/contrastive"] < lines[0]["loss/contrastive"]
    assert lines[-1]["loss/reconstruction"] < 1  # the loss of the mean of each patch
    # The loss of the noise depends on the levels that a batch draws; the explained share does not.
    assert lines[-1]["denoising/explained"] > -0.05


def test_same_command_again_has_nothing_to_do(finished, recipe, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    before = (workdir / "metrics.jsonl").read_text()
    done = run_in_process(recipe, workdir)
    assert done.returncode == 0 and "already finished" in done.stdout
    assert (workdir / "metrics.jsonl").read_text() == before


def run_killed_once(recipe, workdir, *overrides):
    """A run that is killed after its first checkpoint, and then goes on to its end."""
    process = subprocess.Popen(
        command(recipe, workdir, *overrides),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while not (workdir / "checkpoints" / "3").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = run(recipe, workdir, *overrides)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_end(finished, recipe, tmp_path):
    run_killed_once(recipe, tmp_path)
    assert_same_run(tmp_path, finished[0], 6)


def shards_with_broken_images(place):
    """Overrides for a run on streamed shards, two images of which cannot be decoded."""
    rng = np.random.default_rng(0)
    images = [samples.encode(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)) for _ in range(40)]
    images[3] = images[22] = b"broken"
    for i in range(2):
        samples.write_tfrecord(place / f"data/train-{i}.tfrecord", images[20 * i : 20 * i + 20])
    return [
        "data.source=tfrecord", f"data.path={place / 'data'}", "data.streaming=True",
        "data.examples=40", "data.window=7", *QUIET,
    ]  # fmt: skip


@pytest.mark.slow
def test_broken_images_of_shards_are_skipped_counted_and_named(recipe, tmp_path):
    done = run_in_process(recipe, tmp_path / "run", *shards_with_broken_images(tmp_path))
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "run")[-1]["skipped_images"] >= 4
    assert "cannot be decoded" in done.stderr and "record 2" in done.stderr


@pytest.mark.slow
def test_killed_run_on_shards_with_broken_images(recipe, tmp_path):
    """Streamed: where it was is in the checkpoint, and so is what was skipped."""
    overrides = shards_with_broken_images(tmp_path)
    whole = run(recipe, tmp_path / "whole", *overrides)
    assert whole.returncode == 0, whole.stderr
    assert metrics(tmp_path / "whole")[-1]["skipped_images"] >= 4
    assert "cannot be decoded" in whole.stderr and "record 2" in whole.stderr
    run_killed_once(recipe, tmp_path / "killed", *overrides)
    assert_same_run(tmp_path / "killed", tmp_path / "whole", 6)


def test_checkpoints_are_made_by_time_too(recipe, tmp_path, monkeypatch):
    clock = itertools.count(0, 10)  # seconds, of which each look takes ten
    stand_in = SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter)
    monkeypatch.setattr(loop, "time", stand_in)
    options = ["checkpoint.every_steps=100000", "checkpoint.every_minutes=0.33", *QUIET]
    saved, save = [], Checkpointer.save

    def record(self, step, *arguments, **options):
        saved.append(step)
        return save(self, step, *arguments, **options)

    monkeypatch.setattr(Checkpointer, "save", record)
    with counting_steps():
        done = run_in_process(recipe, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert saved == [2, 4, 6]
    log = (tmp_path / "log.txt").read_text()
    lines = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    assert len(lines) == 6 and all(line in log for line in lines)


def test_checkpoints_to_retain_are_saved(recipe, tmp_path):
    """Multiples of `keep_every_steps` need not be multiples of `every_steps`."""
    options = ["checkpoint.every_steps=4", "checkpoint.keep_last=1", *QUIET]
    with counting_steps():
        done = run_in_process(recipe, tmp_path, *options, "checkpoint.keep_every_steps=3")
    assert done.returncode == 0, done.stderr
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == {3, 6}


def test_mesh_that_does_not_split_the_heads_is_named(recipe, tmp_path):
    axes = ["mesh.data=1", "mesh.tensor=4", "model.heads=2", "model.decoder.heads=4"]
    with counting_steps():
        done = run_in_process(recipe, tmp_path, *axes, *QUIET, devices=4)
    assert done.returncode == 0, done.stderr
    assert "mesh.tensor=4 does not divide the 2 attention heads of config.model, so" in done.stderr
    assert "config.model.decoder" not in done.stderr


def test_sigterm_saves_exits_75_and_goes_on(recipe, tmp_path):
    slow = ["total_steps=100000", "checkpoint.every_steps=100000", *LIGHT]
    process = subprocess.Popen(
        command(recipe, tmp_path, *slow), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("step 2/"):
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "stopped by SIGTERM" in errors
    (step,) = (int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert f"step {step} is saved" in errors
    done = run_in_process(recipe, tmp_path, f"total_steps={step + 2}", *slow[1:])
    assert done.returncode == 0 and f"resumed from the checkpoint of step {step}" in done.stdout
    assert "changed since this run began: total_steps" in done.stdout


def test_checkpoint_past_the_end_is_refused(finished, recipe, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    done = run_in_process(recipe, workdir, "total_steps=4")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "checkpoint of step 6, past the end of this run at step 4" in done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["modle.size=L"], "did you mean --config.model.size?"),
        (["batch_size=many"], "batch_size=many"),
        (["model.patch_size=5"], "does not divide data.image_size"),
        (["model.mask_ratio=0.999"], "masks all 16 patches"),
        (["mesh.data=3"], "does not fit 1 devices"),
        (["data.source=folder", "data.path=/no/such/place"], "/no/such/place is not a folder"),
        (["data.source=arrays", "data.path=/no/such/place"], "/no/such/place does not exist"),
        (
            ["data.source=tfds", "data.name=none", "data.path=/no/such/place"],
            "TFDS cannot open 'none'",
        ),
    ],
)
def test_mistake_ends_in_one_line_before_anything_is_written(recipe, tmp_path, overrides, message):
    np.savez(tmp_path / "train.npz", images=np.zeros((20, 16, 16, 3), np.uint8))
    done = run_in_process(recipe, tmp_path / "run", *(o.format(tmp_path) for o in overrides))
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ") and message in lines[-1]
    assert not any("Traceback" in line for line in lines)
    assert "compiled" not in done.stdout
    assert not any(path.is_file() for path in tmp_path.glob("run/**/*"))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("labels", [None, [0, 1]])
def test_labels_that_only_records_have_are_examined(tmp_path, streaming, labels):
    image = samples.encode(np.full((16, 16, 3), 7, np.uint8))
    samples.write_tfrecord(tmp_path / "train.tfrecord", [image] * 2, labels)
    config = small_config(
        data__source="tfrecord", data__path=str(tmp_path), data__streaming=streaming,
        data__examples=2 if streaming else None, objective__contrastive__supervised=True,
    )  # fmt: skip
    source = (open_stream if streaming else open_source)(config.data, "train")
    refused = pytest.raises(UserError, match="supervised=True needs labels")
    with contextlib.nullcontext() if labels else refused:
        check_labels(config, source)


def test_run_without_labels_probes_its_features(recipe, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", images=images)
    data = ["data.source=arrays", f"data.path={tmp_path}", "figures.every_steps=0"]
    with counting_steps():
        done = run_in_process(recipe, tmp_path / "run", *data)
    assert done.returncode == 0, done.stderr
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "probe/effective_rank" in line] == [0, 6]
    assert "label-free feature metrics: effective rank" in done.stdout
    assert "--config=health" in done.stdout and "kNN" not in done.stdout


def test_help_and_debug(recipe, tmp_path):
    done = main_in_process("can_jax.main", "--help")
    assert done.returncode == 0
    assert "--config" in done.stdout and "--workdir" in done.stdout
    done = main_in_process(*command(recipe, tmp_path, "mesh.data=3")[2:], "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_batch_that_does_not_divide_names_the_nearest(recipe, tmp_path):
    done = run_in_process(recipe, tmp_path, "batch_size=12", devices=8)
    assert done.returncode == 1
    assert "batch_size=12 cannot be split evenly over the 8 devices" in done.stderr
    assert "8 and 16" in done.stderr


def test_moving_average_is_what_is_evaluated_and_exported(recipe, tmp_path):
    """The loaded and the exported encoder are the average; a second start continues it."""
    options = [*LIGHT, "optimizer.ema_decay=0.9", "optimizer.warmup_steps=0"]
    options += ["checkpoint.every_steps=1"]
    for steps in (1, 2):
        done = run_in_process(recipe, tmp_path, *options, f"total_steps={steps}")
        assert done.returncode == 0, done.stderr
    first, second = (state_at(tmp_path, step) for step in (1, 2))
    # The decay rate is limited to (1 + t) / (10 + t) after t steps.
    expected = jax.tree.map(
        lambda a, b: 2 / 11 * np.asarray(a) + 9 / 11 * np.asarray(b),
        first["optimizer"]["average"], second["parameters"],
    )  # fmt: skip
    average = second["optimizer"]["average"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), average, expected)
    kernel = average["encoder"]["blocks"]["layers"]["mlp"]["expand"]["kernel"]
    trained = second["parameters"]["encoder"]["blocks"]["layers"]["mlp"]["expand"]["kernel"]
    assert not np.array_equal(kernel, trained)

    def read(parameters):
        return np.asarray(parameters["encoder"]["blocks"]["layers"]["mlp"]["expand"]["kernel"])

    np.testing.assert_array_equal(read(open_model(str(tmp_path)).parameters), kernel)
    mesh = make_mesh(default_config().mesh, jax.devices()[:1])
    for given, array in ((True, kernel), (False, trained)):
        evaluation = default_evaluation()
        evaluation.model.average = given
        opened = open_encoder(str(tmp_path), False, resolve_evaluation(evaluation), mesh)
        np.testing.assert_array_equal(read(opened.parameters), array)
