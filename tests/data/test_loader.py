"""Batches: their order, what resuming gives, and files that cannot be decoded."""

import jax
import numpy as np
import pytest
from PIL import Image

from can_jax.data.loader import TrainingLoader, evaluation_images
from can_jax.data.source import open_source
from can_jax.errors import UserError
from can_jax.parallel.mesh import make_mesh
from tests.conftest import small_config


def batches(config, first=0, total=4, split="train"):
    mesh = make_mesh(config.mesh)
    loader = TrainingLoader(config, open_source(config.data, split), mesh, first, total)
    return [jax.device_get(batch) for batch in loader], loader


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(11):
        path = tmp_path / "pictures" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = rng.integers(9, 40, 2)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return tmp_path / "pictures"


def on_folder(folder, **changes):
    return small_config(data__source="folder", data__path=str(folder), **changes)


def assert_same(a, b):
    for one, other in zip(a, b, strict=True):
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("kind", ["shapes", "folder"])
def test_resuming_anywhere_gives_the_same_stream(kind, folder):
    config = small_config() if kind == "shapes" else on_folder(folder)
    whole, _ = batches(config)
    assert len(whole) == 4
    assert whole[0].views.shape == (8, 2, 16, 16, 3) and whole[0].views.dtype == np.uint8
    assert_same(whole[2:], batches(config, first=2)[0])
    np.testing.assert_array_equal(np.concatenate([b.position for b in whole]), np.arange(32))


def test_views_differ_and_depend_on_the_seed():
    first, other = (batches(small_config(seed=seed), total=1)[0][0] for seed in (0, 1))
    assert not np.array_equal(first.views[:, 0], first.views[:, 1])
    assert not np.array_equal(first.views, other.views)


def test_an_epoch_shows_every_example_once():
    config = small_config(augment__crop_area=(1.0, 1.0), augment__crop_aspect=(1.0, 1.0))
    source = open_source(config.data, "train")
    shown = np.concatenate([batch.views[:, 0] for batch in batches(config, total=8)[0]])
    assert sorted(map(bytes, shown)) == sorted(map(bytes, source.images))


def test_labels_come_with_their_images(folder):
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        Image.fromarray(np.full((20, 20, 3), 20 * i, np.uint8)).save(path)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
    (batch, *_), _ = batches(on_folder(folder))
    for views, label in zip(batch.views, batch.label, strict=True):
        assert names[views[0, 0, 0, 0] // 20].startswith(f"class{label}")


def test_rows_of_several_hosts_are_those_of_one(monkeypatch):
    config = small_config()
    (whole, *_), _ = batches(config)
    source = open_source(config.data, "train")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    parts = []
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        monkeypatch.setattr("can_jax.data.loader.to_global", lambda _, array: array)
        mesh = make_mesh(config.mesh)
        parts.append(next(TrainingLoader(config, source, mesh, 0, 1)))
    for name in whole._fields:
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))


def test_files_that_cannot_be_decoded_are_replaced_counted_and_named(folder, caplog):
    config = on_folder(folder)
    whole, _ = batches(config)
    (folder / "class0" / "0.png").write_bytes(b"not an image")
    (folder / "class1" / "3.png").write_bytes(b"")
    broken, loader = batches(config)
    assert loader.skipped > 0
    for name in ("class0/0.png", "class1/3.png"):
        assert sum(name in record.getMessage() for record in caplog.records) == 1
    same = [
        np.array_equal(a, b)
        for one, other in zip(whole, broken, strict=True)
        for a, b in zip(one.views, other.views, strict=True)
    ]
    assert 0 < same.count(False) < 16  # only the rows of the two files have changed
    assert_same(broken, batches(config)[0])
    assert_same(broken[3:], batches(config, first=3)[0])


def test_nothing_but_broken_files_ends_with_one_line(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="none of 16 images drawn at position"):
        batches(on_folder(folder))


def test_grey_alpha_and_palette_files_become_three_channels(folder):
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8))
    for i, kind in enumerate(("L", "RGBA", "P", "1")):
        grey.convert(kind).save(folder / "class0" / f"odd{i}.png")
    grey.convert("RGB").save(folder / "class0" / "odd.gif")
    grey.convert("RGB").save(folder / "class0" / "odd.bmp")
    grey.convert("CMYK").save(folder / "class0" / "odd.jpg")
    _, loader = batches(on_folder(folder), total=8)
    assert loader.skipped == 0


@pytest.mark.parametrize("labelled", [True, False])
def test_evaluation_images_are_fixed_and_whole(folder, labelled):
    (folder / "class0" / "0.png").write_bytes(b"broken")
    config = on_folder(folder)
    source = open_source(config.data, "train")
    found = evaluation_images(config, source, 100, labelled=labelled)
    assert found.images.shape == (10, 16, 16, 3)
    assert sorted(found.labels.tolist()) == [0] * 5 + [1] * 5
    again = evaluation_images(config, source, 100, labelled=labelled)
    np.testing.assert_array_equal(found.images, again.images)


def test_evaluation_of_arrays_keeps_images_and_labels_together():
    config = small_config()
    source = open_source(config.data, "train")
    found = evaluation_images(config, source, 40, labelled=True)
    for image, label in zip(found.images, found.labels, strict=True):
        index = next(i for i, x in enumerate(source.images) if np.array_equal(x, image))
        assert source.labels[index] == label


def test_unlabelled_images_are_left_out_where_labels_are_asked_for(tmp_path):
    np.savez(tmp_path / "train.npz", images=np.zeros((3, 16, 16, 3), np.uint8), labels=[0, -1, 1])
    config = small_config(data__source="arrays", data__path=str(tmp_path))
    source = open_source(config.data, "train")
    assert evaluation_images(config, source, 9, labelled=True).labels.tolist() == [0, 1]
    assert evaluation_images(config, source, 9, labelled=False).labels.tolist() == [0, -1, 1]
