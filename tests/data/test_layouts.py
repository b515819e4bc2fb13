"""Layouts that people have: lists of labels, Kaggle's ImageNet, formats that are not read."""

import tarfile

import numpy as np
import pytest

from can_jax.data.conversion.imagenet import write_imagenet
from can_jax.data.conversion.images import find_train, find_val
from can_jax.data.formats.label_list import labels_from, read_label_list
from can_jax.data.sources.detect import kind_of
from can_jax.data.sources.registry import open_source
from can_jax.utils.errors import UserError
from tests.data.samples import encode, random_image, write_tar
from tests.helpers.configs import small_config

RNG = np.random.default_rng(0)


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(random_image(RNG, 9, 8)))


def opened(path, split="train", **options):
    config = small_config()
    config.data.update({"source": "folder", "path": str(path), **options})
    return open_source(config.data, split)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("l.csv", ["filename,label", "a/1.png,cat", "b/2.png,dog", "c/9.png,dog"]),
        ("l.tsv", ["Label\tFile_Name", "cat\t./a/1.png", "dog\tb/2.png", "dog\tc/9"]),
        ("l.jsonl", ['{"image": "1.png", "class": "cat"}', '{"image": "2", "class": "dog"}']),
    ],
)
def test_labels_of_a_list_replace_those_of_folders(tmp_path, caplog, name, lines):
    put(tmp_path, "a/1.png", "b/2.png", "b/3.png")
    (tmp_path / name).write_text("\n".join(lines))
    source = opened(tmp_path, labels=str(tmp_path / name))
    assert source.label_names == ("cat", "dog")
    assert source.labels.tolist() == [0, 1, -1]
    assert "1 of 3 images" in caplog.text and "not listed" in caplog.text


def test_integer_labels_and_lists_that_do_not_fit(tmp_path, caplog):
    put(tmp_path, "a/1.png", "b/2.png")
    good = tmp_path / "good.csv"
    good.write_text("id,target\n1,7\n2,-1\n")
    labels, classes, missing = labels_from(read_label_list(str(good)), ["a/1.png", "b/2.png"])
    assert (labels.tolist(), classes, missing) == ([7, -1], (), 0)
    good.write_text("id,target\nx,7\n")
    assert opened(tmp_path, labels=str(good)).label_names == ("a", "b")
    assert "names no image" in caplog.text
    good.write_text("a,b\nx,7\n")
    with pytest.raises(UserError, match="has the columns a, b; it needs a column with file names"):
        read_label_list(str(good))
    with pytest.raises(UserError, match=r"none\.csv cannot be read"):
        read_label_list(str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match="only data.source=folder takes a list"):
        small_config(data__labels="x.csv")


def test_names_of_several_folders_need_paths(tmp_path):
    files = ["a/0.png", "a/1.png", "b/0.png"]
    table = tmp_path / "labels.csv"
    table.write_text("filename,label\n0,cat\n1,dog\n")
    with pytest.raises(UserError, match=r"the entry 0 matches both a/0\.png and b/0\.png; list"):
        labels_from(read_label_list(str(table)), files)
    table.write_text("filename,label\n1.png,dog\n")
    assert labels_from(read_label_list(str(table)), files)[0].tolist() == [-1, 0, -1]
    table.write_text("filename,path,label\n0.png,a/0.png,cat\n0.png,b/0.png,dog\n")
    assert read_label_list(str(table)) == {"a/0.png": "cat", "b/0.png": "dog"}
    table.write_text("filename,path,label\n0.png,/raw/x/0.png,cat\n")
    assert read_label_list(str(table)) == {"0.png": "cat"}


def test_rows_without_a_label_and_with_several(tmp_path, caplog):
    files = ["a.png", "b.png", "c.png", "unlisted.png"]
    table = tmp_path / "labels.csv"
    table.write_text("file_name,label\na.png,cat\nb.png,\nc.png,dog\n")
    labels, classes, missing = labels_from(read_label_list(str(table)), files)
    assert (labels.tolist(), classes, missing) == ([0, -1, 1, -1], ("cat", "dog"), 0)
    assert "more than one label" not in caplog.text
    beyond = 2**70
    table.write_text(f"file_name,label\na.png,4\na.png,4\nb.png,\nc.png,{beyond}\nc.png,5\n")
    assert read_label_list(str(table)) == {"a.png": "4", "c.png": "5"}
    assert "gives more than one label to 1 files; for example" in caplog.text
    assert f"c.png has the labels '{beyond}' and '5'" in caplog.text
    table.write_text(f"file_name,label\na.png,4\nc.png,{beyond}\n")
    labels, classes, _ = labels_from(read_label_list(str(table)), files)
    assert (labels.tolist(), classes) == ([4, -1, -1, -1], ())
    assert f"1 labels, such as {beyond}, are outside the range of int32" in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.jsonl", '{"file_name": "a.png", "label": null}\n{"file_name": "b.png", "label": 0}\n'),
        ("l.csv", "file_name,label\na.png\nb.png,0,\n"),
    ],
)
def test_missing_value_is_an_empty_label(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_label_list(str(tmp_path / name)) == {"b.png": "0"}


def test_row_with_too_many_fields_is_refused(tmp_path):
    (tmp_path / "l.csv").write_text("file_name,label\na, b.png,cat\n")
    with pytest.raises(UserError, match=r"l\.csv: the row a,  b\.png, cat has more fields than"):
        read_label_list(str(tmp_path / "l.csv"))


def test_kaggles_imagenet(tmp_path):
    images = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    put(images, "train/n01/n01_1.png", "train/n02/n02_1.png", "val/v_1.png", "val/v_2.png")
    with pytest.raises(
        UserError,
        match=r"v_1\.png is in no class folder: put a file with the labels, LOC_val_solution",
    ):
        write_imagenet(tmp_path, tmp_path / "to")
    solution = tmp_path / "LOC_val_solution.csv"
    solution.write_text("ImageId,PredictionString\nv_2,n01 1 2 3 4 n01 5 6 7 8\nv_1,n02 1 2 3 4\n")
    assert {image.class_name for image in find_train(images)} == {"n01", "n02"}
    assert [(i.name, i.class_name) for i in find_val(images)] == [
        ("v_1.png", "n02"), ("v_2.png", "n01"),
    ]  # fmt: skip
    source = opened(images, "val", labels=str(solution))
    assert [source.label_names[label] for label in source.labels] == ["n02", "n01"]
    put(images, "val/n01/n01_2.png")
    with pytest.raises(UserError, match=r"v_1\.png is in no class folder, but .*n01_2\.png is"):
        find_val(images)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x-00000-of-00001.parquet", "Parquet, which is not supported: write its images to tars"),
        ("shard.00000.mds", "MosaicML's MDS"),
        ("a.zip", "unpack it with `unzip`"),
        ("a.dcm", "DICOM.*config.data.range"),
        ("a.HEIC", "convert it to JPEG"),
        ("scan.nii.gz", "NIfTI"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=message):
        opened(tmp_path)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=message):
            kind_of(str(path))


def test_an_archive_beside_images_does_not_make_a_folder_shards(tmp_path):
    put(tmp_path, "a/1.TIFF", "a/2.jp2", "b[1]/3.png")
    write_tar(tmp_path / "backup.tar", [("x.txt", b"1")])
    assert kind_of(str(tmp_path))[:2] == ("folder", 3)
    assert kind_of(str(tmp_path / "b[1]")).images == 1
    put(tmp_path, ".bare/1")  # an image without a suffix; hidden from the other calls
    (tmp_path / ".bare" / "README").write_text("no image")
    assert kind_of(str(tmp_path / ".bare"))[:2] == ("folder", 1)
    (tmp_path / "shards").mkdir()
    for i in range(2):
        with tarfile.open(tmp_path / "shards" / f"{i}.tgz", "w:gz"):
            pass
    assert kind_of(str(tmp_path / "shards")).source == "webdataset"
    assert kind_of(f"{tmp_path}/shards/{{0..1}}.tgz").source == "webdataset"
    (tmp_path / "loop").symlink_to(tmp_path)
    assert kind_of(str(tmp_path)).images == 3
