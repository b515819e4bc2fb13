import numpy as np
import pytest

from can_jax.data.sources.arrays import open_arrays
from can_jax.data.sources.registry import open_source
from can_jax.utils.errors import UserError
from tests.helpers.configs import small_config


def images(count, size=8):
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_shards_are_joined_in_order(tmp_path):
    np.savez(tmp_path / "train-1.npz", images=images(3), labels=np.array([4, 5, 6]))
    np.savez(
        tmp_path / "train-0.npz", images=images(2), labels=np.array([1, 2]), label_names=["a", "b"]
    )
    np.savez(tmp_path / "test.npz", images=images(1))
    source = open_arrays(str(tmp_path), "train", 3)
    np.testing.assert_array_equal(source.images, np.concatenate([images(2), images(3)]))
    assert source.labels.tolist() == [1, 2, 4, 5, 6]
    assert source.label_names == ("a", "b")
    assert open_arrays(str(tmp_path), "test", 3).labels.tolist() == [-1]
    assert open_arrays(str(tmp_path / "test.npz"), "train", 3).examples == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pictures": images(2)}, "no array 'images'; it has pictures"),
        ({"images": images(2).astype(np.float32)}, "float32"),
        ({"images": images(2)[..., :1]}, r"expected uint8 \(images, height, width, 3\)"),
        ({"images": images(2), "labels": np.array([1])}, "expected one integer for each"),
        ({"images": images(0)}, "hold no image"),
        ({"images": np.array([{}], dtype=object)}, "cannot be read as an npz file of plain arrays"),
    ],
)
def test_shard_that_is_not_what_it_should_be(tmp_path, content, message):
    np.savez(tmp_path / "train.npz", **content)
    with pytest.raises(UserError, match=message):
        open_arrays(str(tmp_path), "train", 3)


def test_arrays_that_are_not_used_are_named(tmp_path, caplog):
    for i in range(2):
        np.savez(tmp_path / f"train-{i}.npz", images=images(2), label=np.array([0, 1]))
    assert open_arrays(str(tmp_path), "train", 3).labels.tolist() == [-1] * 4
    assert caplog.text.count("the arrays label are not used; only images, labels and") == 1


def test_arrays_in_other_places_are_named(tmp_path, caplog):
    for name in ("train-0.npz", "train/train-1.npz", ".hidden/train-2.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.savez(tmp_path / name, images=images(1))
    np.save(tmp_path / "train-3.npy", images(1))
    assert open_arrays(str(tmp_path), "train", 3).examples == 1
    assert "2 files are left out: train-3.npy, train/train-1.npz; only npz" in caplog.text


def test_shards_of_two_sizes(tmp_path):
    np.savez(tmp_path / "train-0.npz", images=images(2, 8))
    np.savez(tmp_path / "train-1.npz", images=images(2, 9))
    with pytest.raises(UserError, match="several shapes"):
        open_arrays(str(tmp_path), "train", 3)


def test_missing_and_broken(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_arrays(str(tmp_path / "none"), "train", 3)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"no train\*.npz in .*which holds notes.txt"):
        open_arrays(str(tmp_path), "train", 3)
    (tmp_path / "train.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match="cannot be read"):
        open_arrays(str(tmp_path), "train", 3)


def test_shards_that_number_the_same_classes_differently(tmp_path):
    np.savez(tmp_path / "train-0.npz", images=images(2), labels=[0, 1], label_names=["a", "b"])
    np.savez(
        tmp_path / "train-1.npz", images=images(3), labels=[0, 1, -1], label_names=[b"b", b"a"]
    )
    source = open_arrays(str(tmp_path), "train", 3)
    assert source.labels.tolist() == [0, 1, 1, 0, -1] and source.label_names == ("a", "b")
    np.savez(tmp_path / "train-1.npz", images=images(1), labels=[0], label_names=["c"])
    source = open_arrays(str(tmp_path), "train", 3)
    assert source.labels.tolist() == [0, 1, 2] and source.label_names == ("a", "b", "c")
    np.savez(tmp_path / "train-1.npz", images=images(1), labels=[1], label_names=["c"])
    with pytest.raises(
        UserError, match="but a label has no name, or that of another label; give each its own"
    ):
        open_arrays(str(tmp_path), "train", 3)
    np.savez(tmp_path / "train-1.npz", images=images(2), labels=[0, 1], label_names=["c", "c"])
    with pytest.raises(UserError, match="train-1.npz.* give each its own name"):
        open_arrays(str(tmp_path), "train", 3)


@pytest.mark.parametrize("named", [{"label_names": ["a", "b"]}, {}])
def test_label_without_a_name_does_not_become_a_class_of_another_shard(named, tmp_path):
    np.savez(tmp_path / "train-0.npz", images=images(1), labels=[0], label_names=["a", "b"])
    np.savez(tmp_path / "train-1.npz", images=images(2), labels=[1, 2], **named)
    assert open_arrays(str(tmp_path), "train", 3).labels.tolist() == [0, 1, 2]
    np.savez(tmp_path / "train-2.npz", images=images(1), labels=[0], label_names=["c"])
    with pytest.raises(UserError, match="train-1.npz: the shards differ in label_names"):
        open_arrays(str(tmp_path), "train", 3)


def test_labels_beyond_32_bits_are_unknown_and_named(tmp_path, caplog):
    labels = np.array([3, 2**40 + 3, 2**31], np.uint64)
    np.savez(tmp_path / "train.npz", images=images(3), labels=labels)
    assert open_arrays(str(tmp_path), "train", 3).labels.tolist() == [3, -1, -1]
    assert "2 labels, such as 1099511627779, are outside the range of int32" in caplog.text


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gs://bucket/cifar", "config.data.path=gs://bucket/cifar: npz files are read from local"),
        ("{}/train-*.npz", "train-.* does not exist; npz files are given by their folder"),
        ("{}/{{split}}.npz", "does not exist; npz files are given by their folder"),
        ("{}/nothing", "nothing does not exist$"),
    ],
)
def test_paths_that_are_no_local_folder_are_refused(path, message, tmp_path):
    np.savez(tmp_path / "train-0.npz", images=np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match=message):
        open_arrays(path.format(tmp_path), "train", 3)


def test_hint_for_a_missing_split_offers_no_pattern(tmp_path):
    np.savez(tmp_path / "train-0.npz", images=np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="; set config.data.split, .* that exists$"):
        open_arrays(str(tmp_path), "test", 3)


def test_index_that_is_not_used_is_named(tmp_path, caplog):
    np.savez(tmp_path / "train.npz", images=images(1))
    open_source(small_config(data__source="arrays", data__path=str(tmp_path)).data, "train")
    assert "data.index" not in caplog.text
    settings = {"data__source": "arrays", "data__path": str(tmp_path), "data__index": "x"}
    open_source(small_config(**settings).data, "train")
    assert "config.data.index=x is not used with config.data.source=arrays" in caplog.text
