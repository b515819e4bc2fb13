import numpy as np
import pytest
from PIL import Image

from can_jax.data.sources.folder import open_folder
from can_jax.utils.errors import UserError
from tests.data.samples import encode


def put(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(path)


def files(source):
    return [source.table.names[i] for i in range(source.examples)]


def test_first_folder_is_the_class(tmp_path, caplog):
    for name in ("dog/deep/a.png", "cat/b.JPG", "cat/c d ü.webp", "cat/.hidden.png", ".git/x.png"):
        put(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    source = open_folder(str(tmp_path), "train")
    assert files(source) == ["cat/b.JPG", "cat/c d ü.webp", "dog/deep/a.png"]
    assert source.labels.tolist() == [0, 0, 1]
    assert source.label_names == ("cat", "dog")
    assert source.describe(2) == str(tmp_path / "dog/deep/a.png")
    assert "1 files are not recognized as images" in caplog.text and "cat/notes.txt" in caplog.text


def test_loose_images_have_no_labels(tmp_path, caplog):
    put(tmp_path / "a.png")
    put(tmp_path / "more" / "b.png")
    (tmp_path / "more" / "b.png").rename(tmp_path / "more" / "without_suffix")
    source = open_folder(str(tmp_path), "train")
    assert files(source) == ["a.png", "more/without_suffix"]
    assert source.labels.tolist() == [-1, -1] and source.label_names == ()
    assert "such as more are not treated as classes, since 1 of 2 images are in no" in caplog.text


def test_split_folders(tmp_path):
    put(tmp_path / "train" / "x" / "a.png")
    put(tmp_path / "val" / "x" / "b.png")
    assert files(open_folder(str(tmp_path), "train")) == ["x/a.png"]
    assert files(open_folder(str(tmp_path), "val")) == ["x/b.png"]
    with pytest.raises(UserError, match="no folder .*test"):
        open_folder(str(tmp_path), "test")


def test_bytes_and_label_of_a_file(tmp_path):
    put(tmp_path / "x" / "a.png")
    put(tmp_path / "y" / "b.png")
    source = open_folder(str(tmp_path), "train")
    images, labels = source.read(np.array([1, 0]))
    assert images == [(tmp_path / name).read_bytes() for name in ("y/b.png", "x/a.png")]
    assert labels.tolist() == [1, 0]


def test_file_that_has_gone_is_an_error(tmp_path):
    put(tmp_path / "a.png")
    source = open_folder(str(tmp_path), "train")
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png cannot be read: No such file or directory\. Re-"):
        source.read(np.array([0]))


@pytest.mark.parametrize(("room", "kept"), [(0, 0), (150, 1), (10**6, 3)])
def test_cache_keeps_what_it_has_room_for(tmp_path, room, kept):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(name.encode() * 100)
    source = open_folder(str(tmp_path), "train", cache_bytes=room)
    before = source.read(np.array([0, 1, 2]))[0]
    for file in tmp_path.iterdir():
        file.write_bytes(b"other")
    after = source.read(np.array([0, 1, 2]))[0]
    assert sum(map(bytes.__eq__, before, after)) == kept
    assert before == [name * 100 for name in (b"a", b"b", b"c")]


def test_missing_and_empty(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        open_folder(str(tmp_path / "none"), "train")
    with pytest.raises(UserError, match="no image below"):
        open_folder(str(tmp_path), "train")


@pytest.mark.parametrize("stray", ["LICENSE", "README", "Makefile", "cat/CHECKSUMS"])
def test_file_that_is_no_image_takes_no_labels_away(tmp_path, caplog, stray):
    for name in ("cat/a.png", "dog/b.png"):
        put(tmp_path / name)
    (tmp_path / stray).write_text("Permission is hereby granted")
    source = open_folder(str(tmp_path), "train")
    assert source.label_names == ("cat", "dog") and source.labels.tolist() == [0, 1]
    assert files(source) == ["cat/a.png", "dog/b.png"]
    assert "1 files are not recognized as images" in caplog.text and stray in caplog.text


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp", "tiff", "ppm", "ico"])
def test_image_without_a_suffix_is_known_by_its_bytes(tmp_path, kind):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "0").write_bytes(encode(np.full((16, 16, 3), 9, np.uint8), kind))
    assert files(open_folder(str(tmp_path), "train")) == ["x/0"]


@pytest.mark.parametrize("brands", [b"heic", b"heix", b"mif1\0\0\0\0mif1heic"])
def test_heic_without_a_suffix_is_not_an_image(tmp_path, caplog, brands):
    put(tmp_path / "x" / "0.png")
    (tmp_path / "x" / "1").write_bytes(b"\0\0\0\x18ftyp" + brands + bytes(100))
    assert files(open_folder(str(tmp_path), "train")) == ["x/0.png"]
    assert "1 files are not recognized as images" in caplog.text
    avif = b"\0\0\0\x20ftypmif1\0\0\0\0mif1avifmiaf"
    (tmp_path / "x" / "1").write_bytes(avif + bytes(100))
    assert files(open_folder(str(tmp_path), "train")) == ["x/0.png", "x/1"]


def test_few_loose_images_have_no_label_and_are_named(tmp_path, caplog):
    for name in ("cat/a.png", "dog/b.png", "loose.png"):
        put(tmp_path / name)
    source = open_folder(str(tmp_path), "train")
    assert source.label_names == ("cat", "dog") and source.labels.tolist() == [0, 1, -1]
    assert "1 images are in no class folder" in caplog.text and "loose.png" in caplog.text
