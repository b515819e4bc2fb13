"""A real small TFDS data set, built on disk."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from can_jax.data.evaluation.pairs import open_pair
from can_jax.data.sources.registry import open_source
from can_jax.data.sources.tfds import locate_tfds, open_tfds
from can_jax.utils.errors import UserError
from can_jax.utils.tensorflow import tensorflow
from tests.helpers.configs import small_config
from tests.helpers.runs import main_in_process

tf = tensorflow()
import tensorflow_datasets as tfds  # noqa: E402


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def build(root):
    """Write a data set of 23 and 4 images below a folder."""
    features = tfds.features.FeaturesDict(
        {
            "picture": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "class": tfds.features.ClassLabel(names=["even", "odd"]),
            "caption": tfds.features.Text(),
        }
    )

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(23), "test": self._generate_examples(4)}

        def _generate_examples(self, count=0):
            for i in range(count):
                yield i, {"picture": io.BytesIO(png(i)), "class": i % 2, "caption": f"{i}"}

    Tiny.name = "tiny"
    builder = Tiny(data_dir=root)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    build(root)
    return str(root)


def test_records_in_any_order(data_dir):
    source = open_tfds("tiny", data_dir, "train")
    assert source.examples == 23 and source.label_names == ("even", "odd")
    assert len(source.table.names) == 3
    seen = set()
    for index in np.random.default_rng(0).permutation(23):
        (encoded,), (label,) = source.read(np.array([index]))
        value = int(tf.io.decode_image(encoded)[0, 0, 0])
        assert label == value % 2
        seen.add(value)
    assert seen == set(range(23))
    assert "train.tfrecord-00000-of-00003, at byte" in source.describe(0)


def test_split_expressions(data_dir, caplog):
    def values(split, index=None):
        source = open_tfds("tiny", data_dir, split, index)
        images, _ = source.read(np.arange(source.examples))
        return [int(tf.io.decode_image(image)[0, 0, 0]) for image in images]

    whole = values("train")
    assert values("train[:50%]") + values("train[50%:]") == whole
    assert "config.data.index" not in caplog.text
    assert values("train[2:20]", "x") == whole[2:20]
    told = "config.data.index=x is not used, because the split train[2:20] is an expression"
    assert told in caplog.text
    assert values("train[20:]+train[:1]+test") == [*whole[20:], whole[0], *values("test")]
    with pytest.raises(UserError, match=r"train\[:x\] is not a valid split expression of 'tiny'"):
        values("train[:x]")


def test_what_is_not_there_is_named(data_dir, tmp_path):
    with pytest.raises(UserError, match=r"no split 'val'; it has t"):
        open_tfds("tiny", data_dir, "val")
    with pytest.raises(UserError, match="TFDS cannot open 'none'"):
        open_tfds("none", data_dir, "train")
    with pytest.raises(UserError, match=str(tmp_path)):
        open_tfds("mnist", str(tmp_path), "train")


def test_record_file_that_is_cut_off(data_dir, tmp_path, caplog):
    shutil.copytree(data_dir, tmp_path / "cut")
    shard = sorted((tmp_path / "cut").rglob("*train.tfrecord*"))[-1]
    shard.write_bytes(shard.read_bytes()[:-3])
    assert open_tfds("tiny", str(tmp_path / "cut"), "train").examples == 22
    assert f"{shard} is truncated" in caplog.text


def test_index_of_a_prepared_data_set(data_dir, tmp_path):
    command = ["can_jax.data.index", data_dir, "--source=tfds", f"--out={tmp_path}"]
    run = main_in_process(*command)
    assert run.returncode == 1 and "--name is missing" in run.stderr
    run = main_in_process(*command, "--name=tiny", "--verify=none", "--workers=1")
    assert run.returncode == 0, run.stderr
    source = open_tfds("tiny", data_dir, "train", index=str(tmp_path))
    assert source.examples == 23 and source.label_names == ("even", "odd")
    assert isinstance(source.table.offset, np.memmap)


def test_features_that_are_not_used_are_named(data_dir, caplog):
    prepared = {"data__source": "tfds", "data__name": "tiny", "data__path": data_dir}
    open_source(small_config(**prepared).data, "train")
    assert "is not used" not in caplog.text
    open_source(small_config(**prepared, data__image_key="caption").data, "train")
    assert "config.data.image_key=caption is not used with config.data.source=tfds" in caplog.text


def renamed(folder, root, names, supervised):
    """A copy of the data set without code, whose features are named and repeated by ``names``."""
    shutil.copytree(f"{folder}/tiny", root / "several")
    folder = root / "several" / "1.0.0"
    content = json.loads((folder / "features.json").read_text())
    features = content["featuresDict"]["features"]
    content["featuresDict"]["features"] = {name: features[old] for name, old in names.items()}
    (folder / "features.json").write_text(json.dumps(content))
    for name, old in names.items():
        if old == "class" and name != old:
            shutil.copy(folder / "class.labels.txt", folder / f"{name}.labels.txt")
    facts = json.loads((folder / "dataset_info.json").read_text()) | {"name": "several"}
    items = [{"featureKey": key} for key in supervised]
    facts |= {"supervisedKeys": {"tuple": {"items": items}}} if supervised else {}
    (folder / "dataset_info.json").write_text(json.dumps(facts))
    return str(root)


def test_supervised_keys_and_names_choose_among_several_features(data_dir, tmp_path, caplog):
    images = dict.fromkeys(["mask", "picture", "depth", "edges"], "picture")
    labels = dict.fromkeys(["class", "coarse", "colour", "size"], "class")
    root = renamed(data_dir, tmp_path / "stated", images | labels, ["picture", "class"])
    located = locate_tfds("several", root, "train")
    assert (located.image_key, located.label_key) == ("picture", "class")
    assert "features depth, edges, mask, picture; picture is used" in caplog.text
    usual = {"image": "picture", "label": "class"}
    root = renamed(data_dir, tmp_path / "usual", images | labels | usual, ["image", "mask"])
    located = locate_tfds("several", root, "train")
    assert (located.image_key, located.label_key) == ("image", "label")
    root = renamed(data_dir, tmp_path / "labels", {"picture": "picture"} | labels, [])
    assert locate_tfds("several", root, "train").label_key is None
    assert "class, coarse, colour, size; none is used" in caplog.text
    root = renamed(data_dir, tmp_path / "neither", images, [])
    with pytest.raises(UserError, match="has the features depth, edges, mask, picture"):
        locate_tfds("several", root, "train")


def test_names_and_records_are_matched_as_in_other_sources(data_dir):
    config = small_config(data__source="tfds", data__name="tiny", data__path=data_dir)
    found = open_pair(config.data, ("test",), share=0.1, seed=0, counts=(10, None))
    assert found.classes.names == ("even", "odd") and len(found.train.examples) == 10
    learned = found.train.labeled()
    images, labels = learned.read(np.arange(10))
    shown = [int(tf.io.decode_image(image)[0, 0, 0]) % 2 for image in images]
    assert labels.tolist() == shown and learned.label_names == ("even", "odd")
    # Two files of the same bytes: 0.png is in both splits.
    assert any("byte for byte" in note for note in found.notes)


def evil(folder, tmp_path, monkeypatch, change):
    """A data set whose features name a class of a module that says that it was imported."""
    root = tmp_path / "data"
    shutil.copytree(folder, root)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "payload.py").write_text("open(__file__ + '.ran', 'w')\n")
    path = root / "tiny" / "1.0.0" / "features.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return root, tmp_path / "payload.py.ran"


def inner(content):
    content["featuresDict"]["features"]["class"]["pythonClassName"] = "payload.Anything"
    return content


CHANGES = {
    "the whole": lambda content: content | {"pythonClassName": "payload.Anything"},
    "one feature": inner,
    "the old form": lambda content: {"type": "payload.Anything", "content": {}},
    "text within": lambda content: {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "jsonFeature": {"json": json.dumps({"a": {"type": "payload.Anything", "content": {}}})},
    },
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("name", ["tiny", "Tiny", "tiny:1.0.0"])
def test_classes_of_strangers_are_not_imported(data_dir, tmp_path, monkeypatch, change, name):
    root, ran = evil(data_dir, tmp_path, monkeypatch, change)
    with pytest.raises(UserError, match="payload.Anything', which is not part of TFDS") as error:
        open_tfds(name, str(root), "train")
    assert "\n" not in str(error.value)
    assert not ran.exists() and "payload" not in sys.modules


@pytest.mark.parametrize("name", ["huggingface:mnist", "kaggle:x/y", "tiny/a=True", "../tiny", ""])
def test_names_that_stand_for_code_are_refused(data_dir, name):
    with pytest.raises(UserError, match="give NAME, NAME/CONFIG"):
        open_tfds(name, data_dir, "train")


def test_module_that_a_data_set_was_made_by_is_not_imported(data_dir, tmp_path, monkeypatch):
    root, ran = evil(data_dir, tmp_path, monkeypatch, lambda content: content)
    path = root / "tiny" / "1.0.0" / "dataset_info.json"
    facts = json.loads(path.read_text()) | {"moduleName": "payload"}
    path.write_text(json.dumps(facts))
    assert open_tfds("tiny", str(root), "train").examples == 23
    assert not ran.exists()
