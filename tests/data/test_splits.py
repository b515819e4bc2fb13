"""Which files and folders belong to a split, however it is spelled."""

import numpy as np
import pytest
from absl import logging
from PIL import Image

from can_jax.data.index.build import build_index
from can_jax.data.index.examine import Plan
from can_jax.data.sources.arrays import open_arrays
from can_jax.data.sources.example_table import FOLDER
from can_jax.data.sources.folder import open_folder
from can_jax.data.sources.registry import available_splits
from can_jax.data.storage.find import find_shards
from can_jax.data.storage.splits import shown, split_folders
from can_jax.utils.errors import UserError
from tests.helpers.configs import small_config


def test_names_are_shown_on_one_line():
    assert shown("a\nb\r\x1b[1m\u2028c\x85é\udce9") == "a\\nb\\r\\x1b[1m\\u2028c\\x85é\\xe9"


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / name)


def images(path, split):
    source = open_folder(str(path), split)
    return [source.describe(i).removeprefix(f"{path}/") for i in range(source.examples)]


def shards(path, split, root):
    return [name.removeprefix(f"{root}/") for name in find_shards(str(path), split, "tar")]


def splits(source, path):
    return available_splits(small_config(data__source=source, data__path=str(path)).data)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("training-0.tar", "validation-0.tar"), ("Train_0.tar", "VALID_0.tar"),
        ("a.train.tar", "a.dev.tar"), ("dev-set-train.tar", "dev-set-val.tar"),
        ("training/0.tar", "validation/0.tar"), ("Train/x/0.tar", "Dev/x/0.tar"),
        ("train2017.tar", "val2017.tar"),
    ],
)  # fmt: skip
def test_shards_of_splits_by_other_names(tmp_path, train, val):
    touch(tmp_path, train, val)
    for pattern in (tmp_path, f"{tmp_path}/**/*.tar"):
        assert shards(pattern, "train", tmp_path) == [train]
        assert shards(pattern, "val", tmp_path) == shards(pattern, "validation", tmp_path) == [val]
        with pytest.raises(UserError, match=r"(?s)no tar shard of the split 'test' .*\{split\}"):
            shards(pattern, "test", tmp_path)
    assert splits("webdataset", tmp_path) == ("train", "val")


def test_split_in_a_pattern_stands_for_every_spelling(tmp_path):
    touch(tmp_path, "Training/a-training-0.tar", "Validation/a-validation-0.tar")
    names = shards(f"{tmp_path}/{{split}}/*-0.tar", "val", tmp_path)
    assert names == ["Validation/a-validation-0.tar"]
    touch(tmp_path, "val-0.tar", "dev-0.tar")
    pattern = f"{tmp_path}/{{split}}-0.tar"
    assert shards(pattern, "val", tmp_path) == ["val-0.tar"]
    with pytest.raises(UserError, match="several spellings of the split 'validation'"):
        shards(pattern, "validation", tmp_path)
    (tmp_path / "val-0.tar").rename(tmp_path / "valid-0.tar")
    config, problems = small_config(), {}
    config.data.update(source="webdataset", path=pattern)
    assert available_splits(config.data, problems) == ()
    assert "several spellings of the split 'val': valid, dev" in problems["val"]
    with pytest.raises(UserError, match="does not exist"):
        shards(pattern, "test", tmp_path)


@pytest.mark.parametrize("pattern", ["0.tar", "{0..1}.tar", "*.tar", ""])
def test_shards_that_state_no_split_are_training_data_only(tmp_path, pattern):
    touch(tmp_path, "0.tar", "1.tar")
    assert "0.tar" in shards(f"{tmp_path}/{pattern}", "train", tmp_path)
    for split in ("test", "val", "minival"):
        with pytest.raises(UserError, match=r"config\.probe\.split or config\.data\.test_split"):
            shards(f"{tmp_path}/{pattern}", split, tmp_path)
    assert splits("webdataset", f"{tmp_path}/{pattern}") == ("train",)


def test_shards_listed_by_the_user(tmp_path, caplog):
    touch(tmp_path, "train-0.tar", "extra-0.tar", "val-0.tar", "test/0.tar", "minival-0.tar")
    pattern = f"{tmp_path}/{{train,extra}}-0.tar"
    assert shards(pattern, "train", tmp_path) == ["extra-0.tar", "train-0.tar"]
    with pytest.raises(UserError, match="no tar shard of the split 'test'"):
        shards(pattern, "test", tmp_path)
    assert not caplog.text
    pattern = f"{tmp_path}/{{train,val}}-0.tar"
    assert shards(pattern, "train", tmp_path) == ["train-0.tar"]
    assert "1 files do not belong to the split 'train'" in caplog.text
    assert shards(f"{tmp_path}/val-0.tar", "train", tmp_path) == ["val-0.tar"]
    assert shards(f"{tmp_path}/val-0.tar", "val", tmp_path) == ["val-0.tar"]
    assert shards(f"{tmp_path}/test/0.tar", "test", tmp_path) == ["test/0.tar"]
    assert shards(f"{tmp_path}/*.tar", "minival", tmp_path) == ["minival-0.tar"]


def test_folder_without_training_shards(tmp_path, caplog):
    touch(tmp_path, "val-0.tar")
    with pytest.raises(UserError, match=r"'train' in .* which has val \(val-0.tar\)"):
        shards(tmp_path, "train", tmp_path)
    touch(tmp_path, "part-0.tar")
    assert shards(tmp_path, "train", tmp_path) == ["part-0.tar"]
    touch(tmp_path, "train-0.tar")
    assert shards(tmp_path, "train", tmp_path) == ["train-0.tar"]
    assert "part-0.tar" in caplog.text


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("Training", "Validation"), ("TRAIN", "Dev"), ("train2017", "val2017"),
        ("training_set", "validation_set"), ("imgs.train", "imgs.valid"),
    ],
)  # fmt: skip
def test_folders_of_splits_are_no_classes(tmp_path, train, val):
    put(tmp_path, f"{train}/a/0.png", f"{train}/b/0.png", f"{val}/a/0.png")
    assert images(tmp_path, "train") == [f"{train}/a/0.png", f"{train}/b/0.png"]
    assert open_folder(str(tmp_path), "train").label_names == ("a", "b")
    assert images(tmp_path, "validation") == [f"{val}/a/0.png"]
    with pytest.raises(UserError, match="no folder .*test"):
        images(tmp_path, "test")
    assert splits("folder", tmp_path) == ("train", "val")


def test_splits_below_the_classes(tmp_path, caplog):
    put(tmp_path, "cat/train/0.png", "cat/test/1.png", "dog/train/2.png", "dog/test/bad/3.png")
    assert images(tmp_path, "train") == ["cat/train/0.png", "dog/train/2.png"]
    assert images(tmp_path, "test") == ["cat/test/1.png", "dog/test/bad/3.png"]
    assert open_folder(str(tmp_path), "test").label_names == ("cat", "dog")
    assert "2 files do not belong to the split 'train'" in caplog.text
    assert splits("folder", tmp_path) == ("train", "test")


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("images/train/0.png", "masks/train/0.png"), ("images", "masks")),
        (("images/train/0.png", "images/val/1.png", "masks/train/0.png"), ("images", "masks")),
        (("a/x/train/0.png", "b/x/train/0.png"), ("a", "b")),
        (("JPEGImages/0.png", "SegmentationClass/0.png"), ("JPEGImages", "SegmentationClass")),
        (("cat/train/0.png", "dog/train/0.png"), ("cat", "dog")),
    ],
)
def test_folders_that_may_be_no_classes_are_named(tmp_path, caplog, names, classes):
    put(tmp_path, *names)
    assert open_folder(str(tmp_path), "train").label_names == classes
    assert f"folders {', '.join(classes)} are treated as classes, but may not be" in caplog.text


def test_usual_classes_are_no_news(tmp_path, caplog):
    put(tmp_path, "masks/0.png", "hats/0.png", "cat/train station/0.png")
    open_folder(str(tmp_path), "train")
    assert not caplog.text


def test_folder_of_another_split_beside_the_classes(tmp_path, caplog):
    put(tmp_path, "cat/0.png", "dog/0.png", "Val/cat/1.png")
    source = open_folder(str(tmp_path), "train")
    assert source.examples == 2 and source.label_names == ("cat", "dog")
    assert "Val/cat/1.png" in caplog.text
    assert images(tmp_path, "val") == ["Val/cat/1.png"]


def test_index_that_takes_a_split_for_a_class_is_refused(tmp_path):
    put(tmp_path, "cat/0.png", "dog/0.png", "Val/1.png")
    names = ["Val/1.png", "cat/0.png", "dog/0.png"]
    build_index(
        Plan("folder", str(tmp_path)), names, tmp_path / FOLDER / "train",
        file_labels=np.arange(3, dtype=np.int32), label_names=("Val", "cat", "dog"),
    )  # fmt: skip
    with pytest.raises(
        UserError, match="Val is a class, but it is the folder of the split val; rebuild"
    ):
        open_folder(str(tmp_path), "train")


def test_classes_that_contain_a_split_s_word_stay_classes(tmp_path):
    put(tmp_path, "train station/0.png", "test tube/0.png", "developer/0.png")
    assert open_folder(str(tmp_path), "train").label_names == (
        "developer", "test tube", "train station",
    )  # fmt: skip
    assert split_folders(["train station", "test tube", "validator"]) == {}


def test_folder_that_is_itself_the_split(tmp_path):
    put(tmp_path, "test/a/0.png", "photos/a/0.png")
    assert images(tmp_path / "test", "test") == ["a/0.png"]
    with pytest.raises(UserError, match="no folder .*/photos/test"):
        images(tmp_path / "photos", "test")


def test_arrays_of_splits(tmp_path):
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "cifar-Training.npz", images=pixels)
    np.savez(tmp_path / "cifar-dev.npz", images=pixels[:1])
    assert open_arrays(str(tmp_path), "train", 3).examples == 2
    assert open_arrays(str(tmp_path), "val", 3).examples == 1
    assert splits("arrays", tmp_path) == ("train", "val")
    with pytest.raises(UserError, match="no npz file of the split 'test'"):
        open_arrays(str(tmp_path / "cifar-Training.npz"), "test", 3)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("images/train", "images/val"), ("data/x/Training set", "data/x/Validation set"),
        ("data/train_images", "data/val_images"), ("trainset", "valset"),
        ("set/TrainImages", "set/DevImages"),
    ],
)  # fmt: skip
def test_splits_in_the_only_folder_with_images(tmp_path, train, val):
    put(tmp_path, f"{train}/a/0.png", f"{train}/b/0.png", f"{val}/a/0.png")
    touch(tmp_path, "labels/train/0.txt", "README")
    assert images(tmp_path, "train") == [f"{train}/a/0.png", f"{train}/b/0.png"]
    assert images(tmp_path, "val") == [f"{val}/a/0.png"]
    assert open_folder(str(tmp_path), "train").label_names == ("a", "b")
    with pytest.raises(UserError, match="no folder .*test"):
        images(tmp_path, "test")
    assert splits("folder", tmp_path) == ("train", "val")


def test_only_folder_without_splits_is_a_class(tmp_path):
    put(tmp_path, "images/a/0.png", "images/b/0.png")
    assert open_folder(str(tmp_path), "train").label_names == ("images",)


def test_classes_below_the_splits_of_several_folders(tmp_path, caplog):
    put(tmp_path, "x/train/a/0.png", "x/val/a/1.png", "y/train/b/2.png", "y/val/a/3.png")
    assert open_folder(str(tmp_path), "train").label_names == ("a", "b")
    assert open_folder(str(tmp_path), "val").label_names == ("a",)
    assert "the class of an image is the folder below its split folder" in caplog.text


@pytest.mark.parametrize(
    "classes", [("bus", "car", "train"), ("cat", "crash test", "crash train"), ("Train", "bus")]
)
def test_classes_that_are_named_like_splits(tmp_path, caplog, classes):
    put(tmp_path, *(f"{name}/0.png" for name in classes))
    assert open_folder(str(tmp_path), "train").label_names == tuple(sorted(classes))
    assert splits("folder", tmp_path) == ("train",)
    assert "treated as classes" in caplog.text and "config.data.path" in caplog.text
    assert classes[-1].split()[0] in caplog.text or "Train" in caplog.text


def test_images_beside_the_folder_of_the_split_are_named(tmp_path, caplog):
    put(tmp_path, "train/a/0.png", "extra/1.png", "2.png")
    touch(tmp_path, "notes/0.txt")
    assert images(tmp_path, "train") == ["train/a/0.png"]
    assert "beside the folder train of the split 'train' are left out: extra, 2.png" in caplog.text
    caplog.clear()
    touch(tmp_path, "train/0.tar", "1.tar", "val-0.tar")
    assert shards(tmp_path, "train", tmp_path) == ["train/0.tar"]
    assert "1 shards beside the folder train are left out: 1.tar" in caplog.text


def test_second_spelling_of_a_split_is_named(tmp_path, caplog):
    touch(tmp_path, "train-0.tar", "training-0.tar")
    assert shards(tmp_path, "train", tmp_path) == ["train-0.tar"]
    assert "do not belong to the split 'train' and are left out: training-0.tar" in caplog.text
    put(tmp_path, "in/Train/a/0.png", "in/training/a/1.png")
    assert images(tmp_path / "in", "train") == ["Train/a/0.png"]
    put(tmp_path, "in/train/a/0.png")
    assert images(tmp_path / "in", "train") == ["train/a/0.png"]
    assert "left out: training; " in caplog.text and "left out: Train, training; " in caplog.text
    caplog.clear()  # Of a pattern, all files that name no other split are used.
    assert len(shards(tmp_path / "*-0.tar", "train", tmp_path)) == 2 and not caplog.text


def test_arrays_that_name_two_splits(tmp_path):
    pixels = np.zeros((3, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "mnist.npz", images=pixels)
    assert open_arrays(str(tmp_path), "train", 3).examples == 3
    with pytest.raises(
        UserError, match="no npz file of the split 'test' .*only files without a split"
    ):
        open_arrays(str(tmp_path), "test", 3)
    np.savez(tmp_path / "train_train.npz", images=pixels[:1])
    np.savez(tmp_path / "train_test.npz", images=pixels[:2])
    assert open_arrays(str(tmp_path), "train", 3).examples == 1
    assert open_arrays(str(tmp_path), "test", 3).examples == 2


def test_older_index_of_the_folder_above_the_splits_is_read(tmp_path):
    put(tmp_path, "images/train/a/0.png", "images/val/a/1.png")
    place = tmp_path / "index"
    build_index(
        Plan("folder", str(tmp_path)), ["images/train/a/0.png"], place,
        file_labels=np.zeros(1, np.int32), label_names=("images",),
    )  # fmt: skip
    source = open_folder(str(tmp_path), "train", str(place))
    assert source.read(np.zeros(1, np.int64))[0][0] and source.label_names == ("images",)


def test_search_for_splits_leaves_the_level_of_the_logger(tmp_path, monkeypatch):
    put(tmp_path, "train/a/1.png")
    logger = logging.get_absl_logger()
    monkeypatch.setattr(logger, "level", 0)  # inherits that of the root logger
    assert splits("folder", tmp_path) == ("train",)
    assert logger.level == 0
