"""Files of older versions, made by `tests/fixtures/make.py`, are read as those versions did."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import can_jax
from can_jax.config.resolve import load_recipe, resolve
from can_jax.data.sources.registry import open_source
from tests.helpers.runs import counting_steps, metrics, run_in_process

ARCHIVES = sorted((Path(__file__).parents[1] / "fixtures").glob("*.tar.xz"))


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.split(".")[0])
def older(request, tmp_path):
    with tarfile.open(request.param) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path


def test_there_are_archives():
    assert len(ARCHIVES) >= 2


@pytest.mark.parametrize("name", ["run", "export"])
def test_features_are_those_of_the_older_version(older, name):
    features = can_jax.load(older / name)(np.load(older / "images.npy"))
    expected = np.load(older / "features.npy")
    assert expected.std() > 0.1
    np.testing.assert_allclose(features, expected, rtol=0, atol=2e-5)


def test_index_has_the_same_examples(older):
    config = load_recipe(str(older / "recipe.py"), "recipe")
    config.data.path = str(older / "data")
    config = resolve(config)
    source = open_source(config.data, "train")
    assert source.examples == 12 and source.label_names == ("a", "b")
    labels = [source.describe(i).split("/")[-2] for i in range(12)]
    assert [source.label_names[label] for label in source.labels] == labels
    (older / "data/a/new.png").write_bytes(b"")  # of which the index knows nothing
    assert open_source(config.data, "train").examples == 12


def resume(older):
    data = f"data.path={older / 'data'}"
    done = run_in_process(older / "recipe.py", older / "run", data, "total_steps=4")
    assert done.returncode == 0, done.stderr
    assert "resumed from the checkpoint of step 2" in done.stdout
    return {line["step"]: line["loss/total"] for line in metrics(older / "run")}


def test_run_resumes_and_its_metrics_go_on(older):
    """Without a train step: the configuration, data, checkpoint and metrics are read."""
    before = metrics(older / "run")
    with counting_steps():
        assert resume(older) == {line["step"]: line["loss/total"] for line in before} | {3: 1, 4: 1}


@pytest.mark.parametrize(
    "older",
    [
        pytest.param(path, marks=pytest.mark.slow if path != ARCHIVES[-1] else ())
        for path in ARCHIVES
    ],
    indirect=True,
    ids=lambda path: path.name.split(".")[0],
)
def test_run_resumes_with_the_losses_of_the_older_version(older):
    expected, found = json.loads((older / "losses.json").read_text()), resume(older)
    for step in (3, 4):
        assert found[step] == pytest.approx(expected[str(step)], rel=1e-4), step
