"""Batches: their order, what resuming gives, and files that cannot be decoded."""

import dataclasses
import gc
import subprocess
import sys
import time
import weakref

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from can_jax.data.pipeline import training_loader
from can_jax.data.pipeline.loader import open_loader
from can_jax.data.pipeline.order import VERSION, Order
from can_jax.data.pipeline.training_loader import (
    TrainingLoader,
    check_share,
    counts_of,
    host_batches,
)
from can_jax.data.sources.base import ArraySource
from can_jax.data.sources.registry import open_source
from can_jax.distributed.mesh import batch_sharding, make_mesh
from can_jax.distributed.process_slice import ProcessSlice
from can_jax.train.loop import Progress
from can_jax.utils.errors import UserError
from tests.data import samples
from tests.helpers.configs import small_config


def batches(config, first=0, total=4, split="train"):
    mesh = make_mesh(config.mesh, jax.devices()[:1])
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


def test_images_do_not_outlive_what_reads_them():
    config = small_config()
    source = open_source(config.data, "train")
    loader = TrainingLoader(config, source, make_mesh(config.mesh), 0, 4)
    next(loader)
    known = weakref.ref(source)
    del source
    next(loader)
    del loader
    for _ in range(100):  # a thread of the loader may be at work still
        gc.collect()
        if known() is None:
            return
        time.sleep(0.1)
    pytest.fail("the images are held by something")


@pytest.mark.parametrize("kind", ["shapes", "folder"])
def test_resuming_anywhere_gives_the_same_stream(kind, folder):
    config = small_config() if kind == "shapes" else on_folder(folder)
    whole, _ = batches(config)
    assert len(whole) == 4
    assert whole[0].views.shape == (8, 2, 16, 16, 3) and whole[0].views.dtype == np.uint8
    assert_same(whole[2:], batches(config, first=2)[0])
    np.testing.assert_array_equal(np.concatenate([b.position for b in whole]), np.arange(32))


@pytest.mark.parametrize(("saved", "version"), [({}, 1), (dataclasses.asdict(Progress()), VERSION)])
def test_a_run_resumes_the_order_it_began_with(saved, version):
    config = small_config()
    images = np.zeros((40, 16, 16, 3), np.uint8)
    source = ArraySource(images, np.arange(40, dtype=np.int32))
    resumed = Progress.from_json(saved).order_version
    mesh = make_mesh(config.mesh)
    loader = open_loader(config, source, mesh, 2, 5, order_version=resumed)
    found = np.concatenate([batch.label for batch in loader])
    expected = Order(config.seed, (40,), version=version).examples_at(np.arange(16, 40))
    np.testing.assert_array_equal(found, expected)


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


def assert_stream_of(config, source, hosts, steps):
    """The rows of all hosts, joined, are those of one host at these steps."""
    whole = host_batches(config, source, steps, np.arange(config.batch_size)).as_numpy_iterator()
    shares = np.split(np.arange(config.batch_size), hosts)
    parts = [host_batches(config, source, steps, rows).as_numpy_iterator() for rows in shares]
    count = 0
    for batch, *shares in zip(whole, *parts, strict=True):
        for key, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([share[key] for share in shares]), value)
        count += 1
    assert count == steps[1] - steps[0]


def check_stream_on_any_number_of_hosts_from_any_step_on(data, size, hosts, local):
    """Three epochs; killed at any step and gone on with on another number of hosts."""
    images = np.random.default_rng(size).integers(0, 256, (size, 17, 19, 3), dtype=np.uint8)
    source = ArraySource(images, np.arange(size, dtype=np.int32))
    config = small_config(
        batch_size=hosts * local, augment__views=1, objective__contrastive__weight=0.0
    )
    steps = -(-3 * size // config.batch_size)
    kill = data.draw(st.integers(0, steps - 1))
    assert_stream_of(config, source, hosts, (kill, min(steps, kill + 4)))
    labels = [
        batch["label"]
        for part in ((0, kill), (kill, steps))
        for batch in host_batches(
            config, source, part, np.arange(config.batch_size)
        ).as_numpy_iterator()
    ]
    joined = np.concatenate(labels)
    for epoch in range(3):
        assert sorted(joined[epoch * size : (epoch + 1) * size]) == list(range(size))


@pytest.mark.parametrize("cases", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_stream_is_the_same_on_any_number_of_hosts_from_any_step_on(cases):
    drawn = given(st.data(), st.integers(1, 40), st.sampled_from([1, 2, 3]), st.integers(1, 23))
    check = drawn(check_stream_on_any_number_of_hosts_from_any_step_on)
    settings(deadline=None, max_examples=cases)(check)()


def test_broken_files_leave_the_stream_the_same_on_any_number_of_hosts(folder):
    (folder / "class0" / "0.png").write_bytes(b"not an image")
    config = on_folder(folder, batch_size=6)
    source = open_source(config.data, "train")
    assert_stream_of(config, source, 3, (1, 5))


def test_loader_of_each_process_has_its_rows(monkeypatch):
    config = small_config()
    (whole, *_), _ = batches(config)
    source = open_source(config.data, "train")
    mesh = make_mesh(config.mesh)
    monkeypatch.setattr(ProcessSlice, "place", lambda _, local: local)
    for rows in ([0, 1, 2, 3], [1, 4, 6, 7]):  # devices of a process need not be neighbours
        share = ProcessSlice(np.array(rows), 0, 2, config.batch_size, batch_sharding(mesh))
        monkeypatch.setattr(training_loader, "slice_of_process", lambda *_, share=share: share)
        part = next(TrainingLoader(config, source, mesh, 0, 1))
        for name, array in whole._asdict().items():
            expected = None if array is None else array[rows]
            np.testing.assert_array_equal(getattr(part, name), expected)


def test_containers_of_the_same_images_give_the_same_batches(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (13, 20, 17, 3), dtype=np.uint8)
    contents = [samples.encode(image) for image in images]
    labels = rng.integers(0, 3, 13).tolist()
    for i, content in enumerate(contents):
        (tmp_path / f"folder/{i:03d}").mkdir(parents=True)
        (tmp_path / f"folder/{i:03d}/{i:03d}.png").write_bytes(content)
    samples.write_tfrecord(tmp_path / "r" / "train-0.tfrecord", contents[:5], labels[:5])
    samples.write_tfrecord(tmp_path / "r" / "train-1.tfrecord", contents[5:], labels[5:])
    samples.write_webdataset(tmp_path / "w" / "train-0.tar", contents[:9], labels[:9])
    samples.write_webdataset(tmp_path / "w" / "train-1.tar", contents[9:], labels[9:], first=9)
    (tmp_path / "a").mkdir()
    np.savez(tmp_path / "a" / "train.npz", images=images, labels=labels)
    kinds = {"folder": "folder", "tfrecord": "r", "webdataset": "w", "arrays": "a"}
    found = {
        kind: batches(small_config(data__source=kind, data__path=str(tmp_path / name)))[0]
        for kind, name in kinds.items()
    }
    for kind in ("tfrecord", "webdataset"):
        assert_same(found[kind], found["arrays"])
    for one, other in zip(found["folder"], found["arrays"], strict=True):
        np.testing.assert_array_equal(one.views, other.views)


def test_mixture_draws_by_weight(folder):
    parts = (
        {"source": "folder", "path": str(folder), "weight": 3.0},
        {"source": "shapes", "shapes_count": 50},
    )
    config = small_config(data__source="mixture", data__mixture=parts)
    found, loader = batches(config, total=8)
    labels = np.concatenate([batch.label for batch in found])
    assert ((labels >= 0) & (labels < 2)).sum() == 48 and (labels >= 2).sum() == 16
    assert loader.skipped == 0


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
    assert_same(broken[3:], batches(config, first=3)[0])


def test_nothing_but_broken_files_ends_with_one_line(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="none of 16 images tried at stream position"):
        batches(on_folder(folder, batch_size=2))


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


def test_too_many_broken_files_stop_the_run(folder):
    for i in (0, 2, 4, 6):
        (folder / "class0" / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"\d+ of the first \d+ images .*skip_limit=0.01"):
        batches(on_folder(folder, data__skip_limit=0.01), total=8)
    _, loader = batches(on_folder(folder, data__skip_limit=1.0), total=4)
    assert loader.skipped > 4
    assert loader.tried == loader.seen + loader.skipped  # each skipped image has a substitute


ENDS = """
from can_jax.config import default_config, resolve
from can_jax.data.pipeline.training_loader import TrainingLoader
from can_jax.data.sources.registry import open_source
from can_jax.distributed.mesh import make_mesh

config = default_config()
config.total_steps = 10**6
config.batch_size = 64
config.data.update(path=%r, image_size=64)
config = resolve(config)
loader = TrainingLoader(config, open_source(config.data, "train"), make_mesh(config.mesh), 0, 10**6)
next(loader)
"""


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_python_ends_while_batches_are_being_prepared(folder, times):
    for _ in range(times):
        subprocess.run([sys.executable, "-c", ENDS % str(folder)], timeout=60, check=True)


def test_tensorflow_tunes_nothing(folder):
    """The tuner's thread delays the end of a run, now and then, by as long as the run lasted."""
    config = on_folder(folder)
    rows = np.arange(config.batch_size)
    dataset = host_batches(config, open_source(config.data, "train"), (0, 4), rows)
    assert dataset.options().autotune.enabled is False


def test_counts_are_kept_when_a_run_goes_on():
    states = [[80, 3], [80, 1]]
    assert [counts_of(states, process, 2) for process in (0, 1)] == [(80, 3), (80, 1)]
    assert [counts_of(states, process, 3) for process in (0, 1, 2)] == [(160, 4), (0, 0), (0, 0)]
    assert counts_of(None, 0, 1) == (0, 0)


def test_share_is_judged_with_its_uncertainty():
    check_share(skipped=4, tried=8, limit=0.01)
    check_share(skipped=100, tried=10_000, limit=0.01)
    check_share(skipped=110, tried=10_000, limit=0.01)
    with pytest.raises(UserError, match="130 of the first 10000"):
        check_share(skipped=130, tried=10_000, limit=0.01)
    with pytest.raises(UserError):
        check_share(skipped=5, tried=32, limit=0.01)


def test_odd_formats_are_cut_like_all_others(folder):
    """GIF and BMP take the way through Pillow, with the same crops as the PNG they were."""
    whole, _ = batches(on_folder(folder))
    for path in list(folder.rglob("*.png"))[::2]:
        Image.open(path).save(path, "bmp")
    found, loader = batches(on_folder(folder))
    assert loader.skipped == 0
    assert_same(whole, found)


class _WithDigests(ArraySource):
    """Four images; the first and the last have equal content, and that of the second is unknown."""

    content_digests = np.array([2**63 + 5, 0, 7, 2**63 + 5], np.uint64)


def test_copies_share_a_number():
    config = small_config(objective__contrastive__exclude_copies=True)
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    labels = np.arange(4, dtype=np.int32)
    for kind, numbers in ((ArraySource, [0, 1, 2, 3]), (_WithDigests, [5, 1, 7, 5])):
        loader = TrainingLoader(config, kind(images, labels), make_mesh(config.mesh), 0, 1)
        batch = next(loader)  # of eight: each image is in it twice
        expected = np.array(numbers, np.uint32)[np.asarray(batch.label)]
        np.testing.assert_array_equal(batch.content, expected)
    assert batches(small_config(), total=1)[0][0].content is None


def test_copies_of_a_stream_are_not_known():
    with pytest.raises(UserError, match="exclude_copies=True: streamed examples have no index"):
        small_config(
            objective__contrastive__exclude_copies=True, data__source="webdataset", data__path="x",
            data__streaming=True, data__examples=64,
        )  # fmt: skip
