"""Shards read from start to end: what each epoch shows, and going on."""

import bz2
import dataclasses
import gzip
import itertools
import lzma
import os
import tarfile
import threading
import time
import zlib

import jax
import numpy as np
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from can_jax.checkpoint.resume import check_changes
from can_jax.config.resolve import to_json
from can_jax.data.pipeline import chunks
from can_jax.data.pipeline.loader import open_loader
from can_jax.data.pipeline.streaming_loader import (
    NOTHING,
    START,
    ShardStream,
    _batches,
    open_stream,
    resumed,
)
from can_jax.data.pipeline.turns import in_turns
from can_jax.data.pipeline.views import RandomViews
from can_jax.distributed.mesh import make_mesh
from can_jax.distributed.process_slice import slice_of_process
from can_jax.utils.errors import UserError
from tests.data.samples import encode, write_tfrecord, write_webdataset
from tests.helpers.configs import small_config


def numbered_shards(sizes, at_once=1):
    """A stream whose images are their own numbers, as bytes."""
    starts = np.cumsum([0, *sizes])
    content = {
        f"shard{i}": [(bytes([n % 256]), n) for n in range(start, start + size)]
        for i, (start, size) in enumerate(zip(starts, sizes, strict=False))
    }
    return ShardStream(list(content), lambda path: iter(content[path]), sum(sizes), at_once)


SIZES = st.lists(st.integers(0, 9), min_size=3, max_size=6).filter(lambda sizes: min(sizes) > 0)


@settings(deadline=None, max_examples=50)
@given(SIZES, st.integers(1, 12), st.integers(1, 3), st.integers(1, 4), st.data())
def test_each_epoch_shows_every_example_once_and_goes_on_anywhere(
    sizes, window, processes, at_once, data
):
    stream = numbered_shards(sizes, at_once)
    seen = [[], []]
    for process in range(processes):
        everything = []
        for image, label, name, state, _ in stream.stream(0, window, process, processes, START):
            if state[0] == 2:
                break
            assert image == bytes([label % 256]) and name.startswith("shard")
            seen[state[0]].append(label)
            everything.append((label, state))
        if not everything:
            continue
        stop = data.draw(st.integers(0, len(everything) - 1))
        again = stream.stream(0, window, process, processes, everything[stop][1])
        for label, state in everything[stop + 1 :]:
            _, found, _, found_state, _ = next(again)
            assert found == label and found_state == state
    for epoch in seen:
        assert sorted(epoch) == list(range(sum(sizes)))
    if sum(sizes) > 12 and window > 7:
        assert seen[0] != seen[1]


def test_another_number_of_processes_begins_the_next_epoch(caplog):
    states = [[9, 1, 3, 1, 2, 4, 1, 2], [9, 0, 4, 0, 0, 9, 0, 2]]
    assert resumed(states, [0, 2], 1, 2) == (4, 0, 0, 9)
    assert resumed(states, [0, 3], 0, 3) == (5, 0, 0, 0)
    assert "into 2 parts, and is now divided into 3: streaming resumes" in caplog.text
    assert "resumes at the start of epoch 5" in caplog.text
    assert resumed(None, [0, 1], 0, 1) == START


def test_processes_that_load_the_same_rows_resume_at_the_same_position(caplog):
    """A mesh can divide the same number of processes otherwise than that of the checkpoint."""
    apart = [[9, 0, 3, 1, 2, process, process, 4] for process in range(4)]
    for process in range(4):
        assert resumed(apart, [process // 2, 2], process, 4) == (4, 0, 0, 0)
    paired = [[9, 0, 3, 1, 2, process // 2, process // 2, 2] for process in range(4)]
    for process in range(2):
        assert resumed(paired, [process, 2], process, 2) == (3, 1, 2, process)


def test_position_of_an_older_version_is_that_of_its_process(caplog):
    states = [[9, 1, 3, 1, 2, 4], [9, 0, 4, 0, 0, 9]]
    assert resumed(states, [0, 2], 1, 2) == (4, 0, 0, 9)
    assert resumed(states, [0, 1], 1, 2) == resumed(states, [1, 2], 2, 4) == (5, 0, 0, 0)
    assert "did not store how its 2 processes divided a batch: streaming" in caplog.text


def test_run_that_has_not_streamed_before_starts_at_the_first_epoch(caplog):
    states = [[9, 1], [9, 0]]
    assert resumed(states, [1, 2], 1, 2) == resumed(states, [0, 3], 0, 3) == START
    assert (
        "was written without config.data.streaming=True: streaming starts at epoch 0" in caplog.text
    )


def test_other_number_of_concurrent_shards_is_refused(tmp_path):
    """The position in the stream counts records of the shards that are read concurrently."""
    streamed = {
        "data__source": "tfrecord", "data__path": str(tmp_path), "data__streaming": True,
        "data__examples": 9,
    }  # fmt: skip
    stored = to_json(small_config(**streamed))
    with pytest.raises(UserError, match="data.shards_at_once=2, but this run was trained with 8"):
        check_changes(small_config(**streamed, data__shards_at_once=2), stored)


@pytest.fixture
def contents():
    rng = np.random.default_rng(0)
    return [encode(rng.integers(0, 256, (18, 20, 3), dtype=np.uint8)) for _ in range(21)]


def shards(folder, kind, contents):
    for i in range(3):
        part = contents[7 * i : 7 * i + 7]
        labels = list(range(7 * i, 7 * i + 7))
        if kind.startswith("tfrecord"):
            path = folder / f"train-{i}.tfrecord"
            write_tfrecord(path, part, labels)
            if kind.endswith("gz"):
                path.write_bytes(gzip.compress(path.read_bytes()))
        else:
            path = folder / f"train-{i}.tar"
            write_webdataset(path, part, labels)
            if kind.endswith("gz"):
                path.write_bytes(gzip.compress(path.read_bytes()))
    return small_config(
        data__source=kind.split(".")[0],
        data__path=str(folder),
        data__streaming=True,
        data__examples=21,
        data__window=5,
    )


def labels_of(config, first=0, total=8, states=None):
    source = open_stream(config.data, "train")
    loader = open_loader(config, source, make_mesh(config.mesh), first, total, states)
    found = []
    for batch in loader:
        found.append((jax.device_get(batch), loader.state))
    return found, loader


@pytest.mark.parametrize(
    "kind",
    ["tfrecord.gz", "webdataset"]
    + [pytest.param(kind, marks=pytest.mark.slow) for kind in ("tfrecord", "webdataset.gz")],
)
def test_batches_of_shards_resume_exactly(tmp_path, kind, contents):
    config = shards(tmp_path, kind, contents)
    whole, loader = labels_of(config)
    labels = np.concatenate([batch.label for batch, _ in whole])
    for epoch in range(3):
        assert sorted(labels[21 * epoch : 21 * epoch + 21]) == list(range(21))
    rest, _ = labels_of(config, first=3, states=whole[2][1])
    for (one, state), (other, other_state) in zip(whole[3:], rest, strict=True):
        assert state == other_state
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    assert loader.skipped == 0


@pytest.mark.parametrize("kind", ["tfrecord", "webdataset"])
def test_broken_images_and_shards_are_passed_over(tmp_path, kind, contents, caplog):
    contents[3] = b"broken"
    config = shards(tmp_path, kind, contents)
    last = sorted(tmp_path.iterdir())[-1]
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    found, loader = labels_of(config)
    labels = np.concatenate([batch.label for batch, _ in found])
    assert loader.skipped >= 2 and 3 not in labels
    assert "cannot be decoded" in caplog.text and str(last) in caplog.text
    assert set(range(14)) - {3} <= set(labels.tolist())


def test_what_cannot_be_streamed_is_said_before(tmp_path, contents, caplog):
    config = shards(tmp_path, "tfrecord", contents)
    config.data.update(index=str(tmp_path), image_key="other")
    with pytest.raises(
        UserError, match=r"no image in the feature 'other'; set config\.data\.image_key"
    ):
        open_stream(config.data, "train")
    assert f"config.data.index={tmp_path} is not used with config.data.streaming" in caplog.text
    for path in tmp_path.iterdir():
        path.write_bytes(b"no record")
    with pytest.raises(
        UserError, match="none of the 3 shards has an image in its first 16 records"
    ):
        open_stream(config.data, "train")
    with pytest.raises(UserError, match="only tfrecord and webdataset can be streamed"):
        small_config(data__streaming=True)
    with pytest.raises(UserError, match=r"data\.examples is not set"):
        small_config(data__streaming=True, data__source="tfrecord", data__path="x")


def test_tars_written_by_others_are_read(tmp_path):
    """Long names, folders and links, as GNU tar and Python write them."""
    image = encode(np.zeros((9, 9, 3), np.uint8))
    (tmp_path / ("long" * 50)).write_bytes(image)
    with tarfile.open(tmp_path / "train.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(tmp_path / ("long" * 50), arcname=f"folder/{'deep/' * 30}{'long' * 40}.png")
        tar.add(tmp_path, arcname="folder", recursive=False)
    config = small_config(
        data__source="webdataset", data__path=str(tmp_path), data__streaming=True, data__examples=1
    )
    found, _ = labels_of(config, total=2)
    assert len(found) == 2


def test_folder_of_compressed_shards_whose_names_are_not_utf8(tmp_path, contents, caplog):
    contents[3] = b"broken"
    config = shards(tmp_path, "webdataset.gz", contents)
    for path in sorted(tmp_path.iterdir()):
        path.rename(os.fsdecode(os.fsencode(path.with_suffix("")) + b"-\xe9.tar.gz"))
    found, loader = labels_of(config, total=3)
    labels = np.concatenate([batch.label for batch, _ in found])
    assert loader.skipped == 1 and set(labels.tolist()) >= set(range(21)) - {3}
    assert "train-0-\\xe9.tar.gz, record 3" in caplog.text


@pytest.mark.parametrize("kind", ["tfrecord", "webdataset.gz"])
def test_run_whose_shards_become_unreadable_ends_in_one_line(tmp_path, kind, contents):
    config = shards(tmp_path, kind, contents)
    source = open_stream(config.data, "train")
    for path in tmp_path.iterdir():
        path.write_bytes(b"gone")
    loader = open_loader(config, source, make_mesh(config.mesh), 0, 8)
    with pytest.raises(
        UserError, match=r"none of the 3 shards contains an image anymore; .*train-"
    ):
        next(loader)


def test_shards_are_given_up_only_when_all_of_them_are_empty():
    def read(path):
        return iter([(b"image", 0)] if path == "c" else [])

    stream = ShardStream(list("abc"), read, 1).stream(0, 4, 0, 3, START)
    assert [next(stream)[0] for _ in range(20)] == [b"image"] * 20  # of a third of the epochs
    stream = ShardStream(list("ab"), read, 1).stream(0, 4, 1, 2, START)
    with pytest.raises(UserError, match="none of the 2 shards contains an image"):
        next(stream)
    rest = ShardStream(["c"], read, 1).stream(0, 4, 0, 1, (3, 0, 0, 1))  # the end of a pass
    assert next(rest)[3] == (4, 0, 0, 1)


def test_window_mixes_sorted_shards():
    stream = numbered_shards([50] * 8, at_once=8).stream(0, 100, 0, 1, START)
    assert len({next(stream).label // 50 for _ in range(32)}) == 8
    alone = numbered_shards([50] * 8).stream(0, 50, 0, 1, START)
    assert len({next(alone).label // 50 for _ in range(32)}) == 1


def test_order_of_earlier_versions_is_kept():
    """Runs that began without `shards_at_once` resume with 1."""
    labels = [one.label for one in itertools.islice(numbered_shards([3] * 4).stream(
        3, 5, 0, 1, START), 12)]  # fmt: skip
    assert labels == [7, 11, 10, 6, 9, 8, 0, 3, 5, 4, 1, 2]


def test_failing_reader_ends_the_stream_and_its_threads():
    def read(path):
        yield b"image", 0
        raise UserError(f"{path} cannot be read")

    with pytest.raises(UserError, match="cannot be read"):
        list(in_turns(read, ["a", "b"]))
    records = in_turns(lambda path: iter([(b"x" * 10, 0)] * 10_000), ["a", "b", "c"])
    next(records)
    records.close()
    deadline = time.monotonic() + 10
    while any(t.name == "shard-reader" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("rows", [1, 67])
def test_broken_image_in_a_batch_of_any_size_is_replaced(tmp_path, contents, rows):
    contents[3] = contents[10] = b"broken"
    config = shards(tmp_path, "webdataset", contents)
    config.batch_size = rows
    source = open_stream(config.data, "train")
    views = RandomViews.from_config(config)
    share = slice_of_process(make_mesh(config.mesh), 8)
    share = dataclasses.replace(share, rows=np.arange(rows), batch_size=rows)
    dataset = _batches(config, source, views, (0, 21 if rows == 1 else 1), share, START)
    attempts = np.concatenate([batch["attempt"] for batch in chunks.elements(dataset)])
    assert (attempts > 0).sum() >= 2 and attempts.max() < NOTHING


@pytest.mark.parametrize("how", ["zlib", "zstd", "bz2", "xz"])
@pytest.mark.parametrize("kind", ["tfrecord", "webdataset"])
def test_compressions(tmp_path, contents, kind, how):
    config = shards(tmp_path, kind, contents)
    compress = {"zlib": zlib, "zstd": zstd, "bz2": bz2, "xz": lzma}[how].compress
    for path in tmp_path.iterdir():
        whole = path.read_bytes()
        path.write_bytes(compress(whole))
    read = open_stream(config.data, "train")._read
    expected = sorted(contents)
    assert sorted(image for path in tmp_path.iterdir() for image, _ in read(str(path))) == expected
    path.write_bytes(compress(whole)[:-200])
    assert len(list(read(str(path)))) < 8  # truncated: a warning, and no exception


def test_chunk_without_any_image_stops_the_run(tmp_path):
    config = shards(tmp_path, "tfrecord", [b"broken"] * 21)
    with pytest.raises(UserError, match="all images in one part of a batch, and all"):
        labels_of(config)
