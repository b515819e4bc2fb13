"""Whether a data set is the one that a run began with."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from can_jax.config import default_config
from can_jax.data.fingerprint import differences
from can_jax.data.index.build import build_index
from can_jax.data.index.examine import Plan
from can_jax.data.pipeline.streaming_loader import open_stream
from can_jax.data.sources.base import ArraySource
from can_jax.data.sources.example_table import FOLDER
from can_jax.data.sources.folder import open_folder
from can_jax.data.sources.mixture import MixtureSource
from can_jax.data.sources.shards import locate_shards, open_tfrecord, open_webdataset
from can_jax.data.storage.files import find_images
from tests.data.samples import encode, write_tar, write_tfrecord

RNG = np.random.default_rng(0)
IMAGES = [encode(RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)) for _ in range(6)]


@pytest.fixture
def folder(tmp_path):
    for number, image in enumerate(IMAGES[:4]):
        place = tmp_path / f"data/{'ab'[number % 2]}/{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(image)
    return tmp_path / "data"


def of_folder(path):
    return open_folder(str(path), "train").fingerprint()


def test_same_files_at_another_place_are_the_same(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere/copy")
    assert differences(of_folder(folder), of_folder(tmp_path / "elsewhere/copy")) == []


@pytest.mark.parametrize(
    ("change", "phrases"),
    [
        (lambda data: (data / "a/0.png").unlink(), "3 examples instead of 4, other files"),
        (lambda data: (data / "a/9.png").write_bytes(IMAGES[4]), "5 examples instead of 4, other"),
        (lambda data: (data / "a/0.png").rename(data / "a/1.png"), "other files"),
        (lambda data: (data / "a").rename(data / "c"), "other files"),
        (lambda data: (data / "a/0.png").write_bytes(b"xyz"), "other file sizes"),
    ],
)
def test_changed_folder(folder, change, phrases):
    before = of_folder(folder)
    change(folder)
    found = differences(before, of_folder(folder))
    assert ", ".join(found).startswith(phrases)


def test_index_of_the_same_files_changes_nothing(folder):
    before = of_folder(folder)
    names = find_images(str(folder))[0]
    place = folder / FOLDER / "train"
    labels = np.array([0, 0, 1, 1], np.int32)
    plan = Plan("folder", str(folder))
    build_index(plan, names, place, file_labels=labels, label_names=("a", "b"))
    indexed = of_folder(folder)
    assert "sizes" not in indexed and "content" in indexed
    assert differences(before, indexed) == differences(indexed, before) == []
    shutil.rmtree(place)
    (folder / "a/0.png").write_bytes(IMAGES[5])
    build_index(plan, names, place, file_labels=labels, label_names=("a", "b"))
    assert differences(indexed, of_folder(folder)) == ["other content"]


def test_index_of_records_knows_their_labels_and_changes_nothing(tmp_path):
    write_tfrecord(tmp_path / "train-0.tfrecord", IMAGES, [i % 2 for i in range(6)])
    before = open_tfrecord(str(tmp_path), "train").fingerprint()
    plan = Plan("tfrecord", str(tmp_path))
    build_index(plan, ["train-0.tfrecord"], tmp_path / FOLDER / "train")
    assert differences(before, open_tfrecord(str(tmp_path), "train").fingerprint()) == []


def write_shards(root: Path, *counts):
    for number, count in enumerate(counts):
        write_tar(root / f"train-{number}.tar", [(f"{i}.png", IMAGES[i]) for i in range(count)])


def test_shards_are_told_by_name_size_and_places(tmp_path):
    write_shards(tmp_path, 3, 2)
    before = open_webdataset(str(tmp_path), "train").fingerprint()
    _, names = locate_shards("webdataset", str(tmp_path), "train")
    plan = Plan("webdataset", str(tmp_path))
    build_index(plan, names, tmp_path / FOLDER / "train")
    assert differences(before, open_webdataset(str(tmp_path), "train").fingerprint()) == []
    shutil.rmtree(tmp_path / FOLDER)
    write_shards(tmp_path, 2, 3)
    after = open_webdataset(str(tmp_path), "train").fingerprint()
    assert "other example offsets" in differences(before, after)
    with (tmp_path / "train-0.tar").open("ab") as file:
        file.write(bytes(512))
    longer = open_webdataset(str(tmp_path), "train").fingerprint()
    assert differences(after, longer) == ["other file sizes"]


def test_streamed_shards(tmp_path):
    write_shards(tmp_path, 3, 2)
    data = default_config().data
    data.update(source="webdataset", path=str(tmp_path), streaming=True, examples=5)
    before = open_stream(data, "train").fingerprint()
    assert differences(before, open_stream(data, "train").fingerprint()) == []
    (tmp_path / "train-1.tar").rename(tmp_path / "train-2.tar")
    assert differences(before, open_stream(data, "train").fingerprint()) == ["other files"]


def arrays(seed=0, count=5):
    images = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return ArraySource(images, np.arange(count, dtype=np.int32) % 2)


def test_arrays_and_mixtures():
    before = MixtureSource([arrays(), arrays(1)], (1.0, 2.0)).fingerprint()
    same = MixtureSource([arrays(), arrays(1)], (2.0, 4.0)).fingerprint()
    assert differences(before, same) == []
    for parts, weights, phrases in [
        ([arrays(), arrays(2)], (1.0, 2.0), ["part 1: other content"]),
        ([arrays(), arrays(1)], (1.0, 3.0), ["other mixture weights"]),
        ([arrays()], (1.0,), ["1 parts instead of 2"]),
    ]:
        assert differences(before, MixtureSource(parts, weights).fingerprint()) == phrases
    alone = arrays().fingerprint()
    assert differences(alone, before) == ["a mixture instead of one source"]
    assert differences(before, alone) == ["one source instead of a mixture"]
