"""Labels of every source that has them: matched by class, counted once, and never mixed up."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from can_jax.data.sources.example_table import FOLDER
from can_jax.data.sources.registry import open_source
from can_jax.distributed.mesh import make_mesh
from can_jax.encoders.pretrained import open_encoder
from can_jax.evaluate.config import resolve_evaluation
from can_jax.evaluate.measure import evaluate, measure
from can_jax.evaluate.split_features import SplitFeatureExtractor
from can_jax.evaluate.task import EvalContext, EvalResults
from can_jax.features.knn import knn_predictions
from can_jax.train.knn_probe import KnnProbe
from can_jax.train.step import make_step
from can_jax.utils.errors import UserError
from tests.data.samples import write_tfrecord, write_webdataset
from tests.data.test_pairs import CLASSES, arrays, encoded, folder
from tests.evaluate import samples
from tests.helpers.configs import small_config

THERE = {"train": CLASSES, "test": CLASSES[:0:-1]}  # the first class is missing


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return samples.run_directory(tmp_path_factory.mktemp("run"), model__depth=1)


@pytest.fixture(scope="module")
def task(run):
    """An evaluation whose encoder is compiled once for all sources."""
    config = resolve_evaluation(samples.evaluation("knn"))
    mesh = make_mesh(config.mesh)
    subject = open_encoder(str(run), False, config, mesh)
    return EvalContext(
        config, subject, mesh, SplitFeatureExtractor(subject, mesh, 16), epath.Path()
    )


def block_of(task, source, path):
    """A data block of an evaluation."""
    data = ConfigDict(task.data.to_dict())
    with data.ignore_type():
        data.update(source=source, path=str(path))
    return data


def tfrecord(root, contents, count=4):
    """Records of named classes: with an index, as `can_jax.data.imagenet` writes them."""
    for split, names in contents.items():
        chosen = [(name, i) for name in names for i in range(count)]
        labels = [CLASSES.index(name) for name, _ in chosen]
        write_tfrecord(root / f"{split}-0.tfrecord", [encoded(*item) for item in chosen], labels)
        config = small_config(data__source="tfrecord", data__path=str(root))
        table = open_source(config.data, split).table
        facts = {"sizes": {f"{split}-0.tfrecord": (root / f"{split}-0.tfrecord").stat().st_size}}
        dataclasses.replace(table, label_names=CLASSES).save(root / FOLDER / split, facts)
    return root


def webdataset(root, contents, count=4):
    """Records without names."""
    for split, names in contents.items():
        chosen = [(name, i) for name in names for i in range(count)]
        labels = [CLASSES.index(name) * 10**9 for name, _ in chosen]
        write_webdataset(root / f"{split}-0.tar", [encoded(*item) for item in chosen], labels)
    return root


@pytest.mark.parametrize("write", [folder, arrays, tfrecord, webdataset])
def test_nearest_neighbour_of_a_copy_is_of_its_class(task, tmp_path, write):
    pair = task.pair(EvalResults(), block_of(task, write.__name__, write(tmp_path, THERE)))
    train, test = task.read(pair.train), task.read(pair.test)
    assert len(train) == 12 and len(test) == 8 and (test.labels >= 0).all()
    found = knn_predictions(task.select(train), train.labels, task.select(test), k=1)
    np.testing.assert_array_equal(found, test.labels)
    assert set(test.labels.tolist()) == {1, 2} and len(train.classes) == 3


# `linear` and `health` open their examples as `knn` does.
@pytest.mark.parametrize("protocol", ["knn", "fewshot", "classify", "robustness"])
def test_unknown_class_ends_every_protocol_before_it_begins(run, tmp_path, protocol):
    data = folder(tmp_path / "data", {"train": CLASSES[1:], "val": CLASSES})
    config = resolve_evaluation(samples.evaluation(protocol, data))
    with pytest.raises(
        UserError, match="'val' has the class 'a_red' that the split 'train' does n"
    ):
        measure(config, str(run), epath.Path(tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


def test_fine_tuning_on_some_records_and_what_it_tells(run, tmp_path):
    """Labels are in the records alone, are not dense, and the test images are among the others."""
    data = tmp_path / "data"
    chosen = [(name, i) for i in range(8) for name in CLASSES]
    labels = [(70, 900, 5)[CLASSES.index(name)] for name, _ in chosen]
    write_tfrecord(data / "train-0.tfrecord", [encoded(*item) for item in chosen], labels)
    write_tfrecord(data / "val-0.tfrecord", [encoded(*item) for item in chosen[:4]], labels[:4])
    config = samples.evaluation(
        "classify", data, data__source="tfrecord", data__train_examples=16, batch_size=8,
        classify__total_epochs=1.0, classify__warmup_epochs=0.0, **samples.PLAIN,
    )  # fmt: skip
    found = evaluate(resolve_evaluation(config), str(run), epath.Path(tmp_path / "out"))
    assert found["examples"] == {"train": 16, "test": 4}
    card = json.loads((tmp_path / "out" / "classifier.json").read_text())
    assert card["classes"] == 3 and card["numbers"] == [5, 70, 900]
    assert any("are also in the split 'train'" in warning for warning in found["warnings"])
    assert "byte for byte" in (tmp_path / "out" / "report.html").read_text()
    # The classifier knows its classes by their labels.
    other = samples.evaluation("robustness", data, data__source="tfrecord")
    other.robustness.corruptions = "none"
    again, _ = measure(resolve_evaluation(other), str(tmp_path / "out"), epath.Path(tmp_path / "r"))
    assert again.metrics["clean/top1"] == found["metrics"]["finetune/top1"]


def probe(data, **changes):
    """The probe of a run, and what it says of raw pixels."""
    settings = {"probe__k": 1, "data__source": "folder", "data__path": str(data)} | changes
    config = small_config(**settings)
    source = open_source(config.data, config.data.split)
    return KnnProbe(config, make_step(config, lambda _: 0.0), source, make_mesh(config.mesh))


def test_probe_matches_classes_by_name(tmp_path, caplog):
    data = folder(tmp_path, {"train": CLASSES, "val": CLASSES[1:]})  # as the README lays it out
    assert probe(data).on_pixels() == 100
    assert "no split 'test'; 'val' is used instead" in caplog.text
    assert "'val' has no image of 1 of 3 classes, such as 'a_red'" in caplog.text


def test_probe_never_scores_images_against_themselves(tmp_path, caplog):
    """The images are noise: whoever finds the class has seen the image."""
    data = folder(tmp_path, {"train": CLASSES}, count=30)
    for changes in ({}, {"probe__split": "train"}):
        assert probe(data, probe__held_out=0.5, **changes).on_pixels() < 70
    assert "45 examples of the split 'train' are held out" in caplog.text
    with pytest.raises(UserError, match="config.probe.held_out=1.0: give a number above 0"):
        probe(data, probe__held_out=1.0)
    folder(tmp_path, {"val": ("x",)})
    with pytest.raises(UserError, match="probe: .*'x' .*config.probe.every_steps=0"):
        probe(data, probe__split="val")


def test_share_is_held_out_of_an_evaluation_and_kept_in_its_results(task, tmp_path):
    data = block_of(task, "folder", folder(tmp_path, {"train": CLASSES}, count=8))
    config = resolve_evaluation(samples.evaluation("knn", data__held_out=0.25))
    findings = EvalResults()
    pair = dataclasses.replace(task, config=config).pair(findings, data)
    assert (len(pair.train.examples), len(pair.test.examples)) == (18, 6)
    assert any(
        "6 examples of the split 'train' are held out" in warning for warning in findings.warnings
    )
    # Whoever asks for the same split by name gets it, and is told.
    findings = EvalResults()
    assert len(task.pair(findings, data, "train").test.examples) == 24
    assert "are the same examples: accuracies are meaningless" in findings.warnings[-1]
