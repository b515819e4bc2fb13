import numpy as np
import pytest
from PIL import Image

from can_jax.data.folder import open_folder
from can_jax.errors import UserError


def put(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(path)


def test_first_folder_is_the_class(tmp_path):
    for name in ("dog/deep/a.png", "cat/b.JPG", "cat/c d ü.webp", "cat/.hidden.png", ".git/x.png"):
        put(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    source = open_folder(str(tmp_path), "train")
    assert source.files == ("cat/b.JPG", "cat/c d ü.webp", "dog/deep/a.png")
    assert source.labels.tolist() == [0, 0, 1]
    assert source.label_names == ("cat", "dog")
    assert source.describe(2) == str(tmp_path / "dog/deep/a.png")


def test_loose_images_have_no_labels(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "more" / "b.png")
    source = open_folder(str(tmp_path), "train")
    assert source.labels.tolist() == [-1, -1] and source.label_names == ()


def test_split_folders(tmp_path):
    put(tmp_path / "train" / "x" / "a.png")
    put(tmp_path / "val" / "x" / "b.png")
    assert open_folder(str(tmp_path), "train").files == ("x/a.png",)
    assert open_folder(str(tmp_path), "val").files == ("x/b.png",)
    with pytest.raises(UserError, match="no folder .*test"):
        open_folder(str(tmp_path), "test")


def test_bytes_and_label_of_a_file(tmp_path):
    put(tmp_path / "x" / "a.png")
    encoded, label = open_folder(str(tmp_path), "train").load(0)
    assert encoded.numpy() == (tmp_path / "x" / "a.png").read_bytes() and int(label) == 0


def test_missing_and_empty(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        open_folder(str(tmp_path / "none"), "train")
    with pytest.raises(UserError, match="no image below"):
        open_folder(str(tmp_path), "train")
