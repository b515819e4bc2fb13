import numpy as np
import pytest

from can_jax.data.sources.registry import open_source
from can_jax.train.pretrain import check_labels
from can_jax.utils.errors import UserError
from tests.data.samples import encode, write_tfrecord, write_webdataset
from tests.helpers.configs import small_config


@pytest.fixture
def parts(tmp_path):
    for i in range(6):
        path = tmp_path / "folder" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(np.full((16, 16, 3), i, np.uint8)))
    records = [encode(np.full((16, 16, 3), 100 + i, np.uint8)) for i in range(4)]
    write_tfrecord(tmp_path / "records.tfrecord", records)
    return (
        {"source": "folder", "path": str(tmp_path / "folder"), "weight": 3.0},
        {"source": "tfrecord", "path": str(tmp_path / "records.tfrecord")},
        {"source": "shapes", "shapes_count": 32},
    )


def test_parts_follow_each_other(parts):
    config = small_config(data__source="mixture", data__mixture=parts)
    source = open_source(config.data, "train")
    assert source.examples == 6 + 4 + 32 and source.weights == (3.0, 1.0, 1.0)
    assert source.sizes == (6, 4, 32)
    images, labels = source.read(np.array([41, 0, 6, 5]))
    folder = source.parts[0]
    assert images[1:] == [
        folder.read(np.array([0]))[0][0],
        source.parts[1].read(np.array([0]))[0][0],
        folder.read(np.array([5]))[0][0],
    ]
    assert labels.tolist() == [2 + source.parts[2].labels[31], 0, -1, 1]
    assert source.label_names[:3] == ("0/class0", "0/class1", "2/disc")
    assert source.describe(5).endswith("class1/5.png") and "records.tf" in source.describe(6)


IMAGE = encode(np.full((16, 16, 3), 7, np.uint8))


def labels_of_parts(*parts):
    config = small_config(data__source="mixture", data__mixture=parts)
    source = open_source(config.data, "train")
    return source.read(np.arange(source.examples))[1].tolist(), source.label_names


def test_parts_without_names_share_no_class(tmp_path):
    parts = []
    for name, labels in (("a", [0, 1, 1]), ("b", [1, 7]), ("c", [2**31 - 1, 5, 2**31 - 1])):
        write_webdataset(tmp_path / name / "train-0.tar", [IMAGE] * len(labels), labels)
        parts.append({"source": "webdataset", "path": str(tmp_path / name)})
    found, names = labels_of_parts(*parts)
    assert found == [0, 1, 1, 2, 3, 5, 4, 5]
    assert names[:3] == ("0/label 0", "0/label 1", "1/label 1")
    # A class is called alike in a split that lacks others.
    write_webdataset(tmp_path / "a" / "train-0.tar", [IMAGE], [1])
    found, names = labels_of_parts(*parts)
    assert names[:2] == ("0/label 1", "1/label 1") and found[:3] == [0, 1, 2]


def test_parts_with_the_same_names_share_no_class(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "cat").mkdir(parents=True)
        (tmp_path / name / "cat" / "0.png").write_bytes(IMAGE)
    parts = [{"path": str(tmp_path / name)} for name in ("a", "b")]
    assert labels_of_parts(*parts) == ([0, 1], ("0/cat", "1/cat"))


def test_labels_beyond_their_names_are_refused(tmp_path):
    images, labels = np.zeros((2, 16, 16, 3), np.uint8), np.array([0, 2])
    np.savez(tmp_path / "train.npz", images=images, labels=labels, label_names=["cat", "dog"])
    with pytest.raises(UserError, match="part 0 of .* has the label 2, but only 2 label_names"):
        labels_of_parts({"source": "arrays", "path": str(tmp_path)})


def test_labels_in_records_without_an_index_are_told_to_be_unknown(tmp_path, caplog):
    write_tfrecord(tmp_path / "train.tfrecord", [IMAGE] * 2, [0, 1])
    part = {"source": "tfrecord", "path": str(tmp_path / "train.tfrecord")}
    assert labels_of_parts(part)[0] == [-1, -1]
    assert "part 0 of config.data.mixture: labels" in caplog.text
    config = small_config(
        data__source="mixture", data__mixture=(part,), objective__contrastive__supervised=True,
        data__index=str(tmp_path),
    )  # fmt: skip
    with pytest.raises(UserError, match="supervised=True needs labels"):
        check_labels(config, open_source(config.data, "train"))
    assert f"config.data.index={tmp_path} is not used for a mixture" in caplog.text


def test_what_is_wrong_with_a_mixture_is_one_line(parts):
    for broken, message in [
        ((), "mixture is empty"),
        (({"weight": 0.0, **parts[1]} | {"weight": 0.0},), "weight=0.0: give a number above 0"),
        (({"source": "mixture"},), "cannot be a mixture"),
        (({"sorce": "folder"},), "unknown key 'sorce'; did you mean 'source'"),
        (({"source": "folder"},), "data.path is not set"),
        (
            ({**parts[0], "channels": 1},),
            "a part cannot set 'channels', which all parts share; set config.data.channels",
        ),
        (({**parts[0], "exif_orientation": True},), "set config.data.exif_orientation"),
    ]:
        with pytest.raises(UserError, match=message):
            small_config(data__source="mixture", data__mixture=broken)
