"""Encoders of runs whose stored settings are refused today are read all the same."""

import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath

import can_jax
from can_jax.distributed.mesh import make_mesh
from can_jax.encoders.pretrained import open_encoder
from can_jax.evaluate.config import resolve_evaluation
from can_jax.evaluate.measure import evaluate, measure
from can_jax.evaluate.protocols.finetune import run_config
from can_jax.evaluate.split_features import SplitFeatureExtractor
from can_jax.evaluate.task import EvalContext
from can_jax.export.model import open_model
from can_jax.train.init_from import initial_weights
from can_jax.utils.errors import UserError
from tests.evaluate import samples

REFUSED = {
    "seed": -1, "batch_size": 0, "total_steps": 0, "probe.k": 0, "probe.held_out": 0.0,
    "figures.images": 0, "checkpoint.keep_every_steps": 0, "spike.steps": -1,
    "optimizer.epsilon": 0.0, "optimizer.learning_rate": 1e6, "augment.blur_sigma": [0.0, 0.0],
    "augment.brightness": -1.0, "objective.contrastive.temperature": 0.0, "model.mask_ratio": 0.999,
    "accumulation.microbatches": 3, "data.window": 0, "data.path": "", "data.skip_limit": 2.0,
}  # fmt: skip


def with_settings(run, place, settings):
    """Copy a run directory, and change what it stores."""
    shutil.copytree(run, place)
    stored = json.loads((place / "config.json").read_text())
    for name, value in settings.items():
        *blocks, last = name.split(".")
        block = stored
        for key in blocks:
            block = block[key]
        block[last] = value
    (place / "config.json").write_text(json.dumps(stored))
    return place


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A run directory, the same with settings that are refused, and a small ImageNet."""
    root = tmp_path_factory.mktemp("stored")
    (root / "run").mkdir()
    run = samples.run_directory(root / "run")
    return run, with_settings(run, root / "old", REFUSED), samples.arrays(root / "arrays")


def test_the_encoder_is_that_of_the_run(places):
    run, old, _ = places
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(can_jax.load(old)(images), can_jax.load(run)(images))
    one, other = open_model(str(run)), open_model(str(old))
    assert other.config.probe.k == 0  # what an export tells of the run is what was stored
    for a, b in zip(*(jax.tree.leaves(model.parameters) for model in (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)
    zeros = jax.tree.map(lambda leaf: 0 * leaf, one.parameters)
    mesh = make_mesh(one.config.mesh, jax.devices()[:1])
    placed = jax.device_put(zeros, jax.sharding.NamedSharding(mesh, jax.P()))
    taken, _ = initial_weights(str(old), placed, mesh)
    np.testing.assert_array_equal(
        taken["encoder"]["norm"]["scale"], one.parameters["encoder"]["norm"]["scale"]
    )


def test_an_evaluation_on_other_data_is_that_of_the_run(places, tmp_path):
    run, old, data = places
    config = resolve_evaluation(samples.evaluation("knn", data))
    out = epath.Path(tmp_path / "out")
    found = [measure(config, str(place), out, pictures=False)[0] for place in (run, old)]
    assert found[0].metrics == found[1].metrics


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.width": 25}, "config.model.width=25: give a whole number"),
        ({"model.heads": 5}, "config.model.heads=5 does not divide model.width=24"),
        ({"augment.std": [0.2, 0.0, 0.2]}, r"config.augment.std=\(0.2, 0.0, 0.2\): give"),
        ({"augment.mean": [0.2]}, "config.augment.mean has 1 values, but data.channels=3"),
        ({"data.image_size": 0}, "config.data.image_size=0: give"),
    ],
)
def test_settings_of_the_encoder_are_checked(places, tmp_path, settings, message):
    run = with_settings(places[0], tmp_path / "run", settings)
    for read in (can_jax.load, lambda place: open_model(str(place))):
        with pytest.raises(UserError, match=rf"run/config.json: {message}"):
            read(run)


@pytest.mark.parametrize(
    ("protocol", "settings", "message"),
    [
        ("knn", {"data.shapes_count": 0}, "config.data.shapes_count=0: give"),
        ("health", {"augment.hue": 2.0}, "config.augment.hue=2.0: give"),
        ("classify", {"augment.crop_aspect": [2, 1]}, r"config.augment.crop_aspect=\(2, 1\): give"),
    ],
)
def test_settings_that_a_protocol_uses_are_checked(places, tmp_path, protocol, settings, message):
    run = with_settings(places[0], tmp_path / "run", settings)
    config = resolve_evaluation(samples.evaluation(protocol))
    with pytest.raises(UserError, match=rf"run/config.json: {message}"):
        evaluate(config, str(run), epath.Path(tmp_path / "out"))
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_share_that_holds_nothing_out_is_refused(places, tmp_path):
    _, old, data = places
    (tmp_path / "data").mkdir()
    shutil.copy(data / "train.npz", tmp_path / "data")
    config = samples.evaluation("knn", tmp_path / "data", data__test_split=None)
    with pytest.raises(
        UserError, match="config.probe.held_out=0.0 is not a valid fraction .*data.held_out"
    ):
        measure(resolve_evaluation(config), str(old), epath.Path(tmp_path / "out"))


@pytest.mark.parametrize("changes", [{}, {"optimizer": "lars", "learning_rate": 20.0}])
def test_the_training_of_a_classifier_has_defaults_in_their_place(places, changes, caplog):
    _, old, data = places
    changes = {f"classify__{key}": value for key, value in changes.items()}
    config = resolve_evaluation(samples.evaluation("classify", data, **changes))
    mesh = make_mesh(config.mesh)
    subject = open_encoder(str(old), True, config, mesh)  # whose seed is -1
    task = EvalContext(
        config, subject, mesh, SplitFeatureExtractor(subject, mesh, 16), epath.Path()
    )
    trained = run_config(task)
    assert (trained.spike.steps, trained.batch_size) == (10, 16)
    assert trained.optimizer.learning_rate == config.classify.learning_rate
    assert f"{old}: config.spike.steps=-1 is no longer allowed; 10 is used instead" in caplog.text
