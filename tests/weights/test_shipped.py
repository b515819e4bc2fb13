"""The encoders that are installed with the package."""

import json

import numpy as np
import pytest
from etils import epath

import can_jax
from can_jax.checkpoint.run_directory import find_checkpoint
from can_jax.evaluate.config import default_evaluation
from can_jax.export.model import open_model
from can_jax.utils.errors import UserError
from can_jax.weights.shipped import FOLDER, shipped_names


@pytest.fixture(autouse=True)
def away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_installed_encoder_is_loaded_by_its_name():
    assert "can-cifar10" in shipped_names()
    rng = np.random.default_rng(0)
    for name in shipped_names():
        encoder, stated = can_jax.load(name), can_jax.load(FOLDER / name)
        images = rng.integers(0, 256, (3, *encoder.image_size, encoder.channels), np.uint8)
        features = encoder(images)
        assert np.isfinite(features).all() and features.std(axis=0).max() > 1e-3
        np.testing.assert_array_equal(features, stated(images))
        card = (FOLDER / name / "README.md").read_text()
        assert json.loads((FOLDER / name / "manifest.json").read_text())["format"] in card
        assert "license:" in card and "## Training" in card


def test_every_command_finds_the_same_files():
    assert find_checkpoint("can-cifar10") == (epath.Path(FOLDER / "can-cifar10"), None)
    assert open_model("can-cifar10")


def test_weights_without_a_run_are_evaluated_only_on_given_data(tmp_path):
    with pytest.raises(UserError, match="can-cifar10 comes without a data set"):
        can_jax.evaluate_encoder("can-cifar10", default_evaluation(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    config = default_evaluation()
    shapes = {"source": "shapes", "shapes_count": 200}
    config.protocol, config.fewshot.shots, config.fewshot.datasets = "fewshot", (1,), (shapes,)
    with config.ignore_type():
        config.data.update(train_examples=100, test_examples=20)
    results = can_jax.evaluate_encoder("can-cifar10", config, tmp_path / "few")
    assert "fewshot/data0/1shot" in results["metrics"]


def test_a_file_in_the_working_directory_comes_first(tmp_path):
    (tmp_path / "can-cifar10").mkdir()
    assert find_checkpoint("can-cifar10")[0] == epath.Path("can-cifar10")


def test_an_unknown_name_is_answered_with_the_names():
    with pytest.raises(UserError, match=r"can-cifar does not exist; .*: can-cifar10"):
        can_jax.load("can-cifar")
