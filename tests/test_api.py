"""The public functions, called from a thread of a program, with paths as strings."""

import json
import os
import subprocess
import sys
import threading
from unittest.mock import patch

import jax
import numpy as np
import pytest

import can_jax
from can_jax.config import load_recipe
from can_jax.plan import child
from can_jax.utils.errors import UserError
from tests.helpers.configs import small_config
from tests.helpers.runs import ROOT, metrics


def tiny(**changes):
    config = can_jax.default_config()
    config.update_from_flattened_dict({
        "batch_size": 16, "total_steps": 2, "log_every_steps": 1, "data.source": "shapes",
        "data.image_size": (16, 16), "data.shapes_count": 64, "model.width": 24, "model.depth": 1,
        "model.heads": 3, "model.patch_size": 4, "model.dtype": "float32", "model.scan": False,
        "model.decoder.width": 16, "model.decoder.depth": 1, "model.decoder.heads": 2,
        "model.projector.hidden": 32, "model.projector.outputs": 16, "augment.jitter": 0.0,
        "augment.grayscale": 0.0, "augment.blur": 0.0, "probe.every_steps": 0,
        "figures.every_steps": 0,
        # MAE, which compiles in half the time.
        "objective.contrastive.weight": 0.0, "objective.denoising.weight": 0.0,
        "noise.sigma_max": 0.0, "augment.views": 1, **changes,
    })  # fmt: skip
    return config


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """As most programs have, and for which less is compiled."""
    chosen = jax.devices()[:1]
    with patch.object(jax, "devices", lambda: chosen):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that a thread of this process has trained."""
    workdir = tmp_path_factory.mktemp("api") / "run"
    thread = threading.Thread(target=can_jax.pretrain, args=(tiny(), str(workdir)))
    thread.start()
    thread.join()
    return workdir


def test_training_from_a_thread(run):
    assert [line["step"] for line in metrics(run) if "loss/total" in line] == [1, 2]
    with pytest.raises(UserError, match=r"config\.seed=7, but this run was trained with 0"):
        can_jax.pretrain(tiny(seed=7), str(run))
    # With the change allowed the run is one that has ended, for which nothing is compiled.
    can_jax.pretrain(tiny(seed=7), str(run), allow_changes=["seed"])
    assert metrics(run)[-1]["step"] == 2


def test_evaluation_and_export_of_a_run(run, tmp_path):
    protocol = load_recipe(str(ROOT / "configs/eval/knn.py"), "knn")
    protocol.data.update(train_examples=32, test_examples=16)
    results = can_jax.evaluate_encoder(str(run), protocol, str(tmp_path / "knn"))
    assert json.loads((tmp_path / "knn/results.json").read_text()) == results
    manifest = can_jax.export_encoder(str(run), "safetensors", str(tmp_path / "export"))
    assert max(manifest["checked"]["largest_error"].values()) < 1e-4
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    features = can_jax.load(str(run))(images)
    np.testing.assert_allclose(can_jax.load(tmp_path / "export")(images), features, atol=1e-5)


def test_plan_is_made_by_the_code_of_the_command(monkeypatch):
    asked = []
    monkeypatch.setattr(child, "plan_in_child", lambda *given: asked.append(given) or {"fits": 1})
    config = small_config()
    assert can_jax.plan_run(config, "h100:2", mfu=0.5) == {"fits": 1}
    assert asked == [(config, "h100:2", 1, 0.5)]


def test_plan_for_unknown_devices_is_refused():
    with pytest.raises(UserError, match="unknown device 'h10'; did you mean h100"):
        can_jax.plan_run(small_config(), "h10:2")


def test_child_of_a_plan_finds_the_modules_that_this_program_finds(monkeypatch):
    commands = []

    def started(command, env, **_):
        commands.append((command[1:3], env["PYTHONPATH"].split(os.pathsep)))
        return subprocess.CompletedProcess(command, 1, "", "error: ended")

    monkeypatch.setattr(subprocess, "run", started)
    monkeypatch.setattr(sys, "path", ["", "/where/can_jax/is"])
    with pytest.raises(UserError, match="^ended$"):
        can_jax.plan_run(small_config(), "h100:2")
    assert commands == [(["-m", "can_jax.plan"], ["/where/can_jax/is"])]


def test_mesh_that_the_planner_changes_is_a_warning(monkeypatch):
    plan = {"fits": True, "mesh_change": "mesh.fsdp=3 does not fit 8 devices"}
    done = subprocess.CompletedProcess([], 0, json.dumps(plan), "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.warns(UserWarning, match="mesh.fsdp=3 does not fit"):
        assert can_jax.plan_run(small_config(), "h100:8") == plan


def test_file_is_no_run_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file: give the path of a folder"):
        can_jax.pretrain(tiny(), tmp_path / "file")


def test_refused_evaluation_leaves_no_directory(tmp_path):
    (tmp_path / "weights.txt").write_text("none")
    protocol = load_recipe(str(ROOT / "configs/eval/knn.py"), "knn")
    with pytest.raises(UserError, match="not a supported weight file"):
        can_jax.evaluate_encoder(tmp_path / "weights.txt", protocol, tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("path", ["", "foo://bucket/run"])
def test_path_that_cannot_be_one_is_refused(path):
    for call in (
        lambda: can_jax.load(path),
        lambda: can_jax.pretrain(tiny(), path),
        lambda: can_jax.evaluate_encoder(
            path, load_recipe(str(ROOT / "configs/eval/knn.py"), "knn"), "results"
        ),
        lambda: can_jax.export_encoder(path, "timm", "export"),
        lambda: can_jax.export_encoder("run", "timm", path),
    ):
        with pytest.raises(UserError, match="is not a path|foo:// is not supported"):
            call()


@pytest.mark.parametrize("names", ["batch-size", ["seed", "batch-size"]])
def test_unknown_name_of_allowed_changes_is_refused_with_the_names(tmp_path, names):
    message = "allow_changes='batch-size': choose from seed, batch_size, data"
    with pytest.raises(UserError, match=message):
        can_jax.pretrain(tiny(), tmp_path / "run", allow_changes=names)


def test_unknown_format_of_an_export_is_refused_with_the_formats(tmp_path):
    with pytest.raises(UserError, match="--format=pickle: choose one of timm, huggingface"):
        can_jax.export_encoder("run", "pickle", tmp_path / "export")


@pytest.mark.slow
def test_plan_of_a_run():
    config = small_config()
    before = config.to_json()
    plan = can_jax.plan_run(config, "h100:2")
    assert plan["fits"] and plan["devices"] == 2 and plan["step_seconds"] > 0
    assert config.to_json() == before
