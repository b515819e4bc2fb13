"""Blocks of encoded images: what they hold, and what they cost the interpreter."""

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import can_jax
from can_jax.data.sources.base import ArraySource, SelectedSource
from can_jax.data.sources.block import image_in
from can_jax.data.sources.indexed import IndexedSource
from can_jax.data.sources.mixture import MixtureSource
from can_jax.data.sources.registry import open_source
from can_jax.data.storage.reading import LARGEST
from tests.data.samples import encode, write_tfrecord, write_webdataset
from tests.helpers.configs import small_config

PACKAGE = Path(can_jax.__file__).parent
RNG = np.random.default_rng(0)
IMAGES = [encode(RNG.integers(0, 256, (9, 7 + i, 3), dtype=np.uint8)) for i in range(12)]
LABELS = list(range(12))


def open_all(folder):
    """Sources of all kinds by name, with the same twelve images in those from files."""
    for i, image in enumerate(IMAGES):
        (folder / "folder" / str(i % 3)).mkdir(parents=True, exist_ok=True)
        (folder / "folder" / str(i % 3) / f"{i:02d}.png").write_bytes(image)
    for i in range(3):
        part = slice(4 * i, 4 * i + 4)
        write_webdataset(folder / "webdataset" / f"{i}.tar", IMAGES[part], LABELS[part], 4 * i)
        write_tfrecord(folder / "tfrecord" / f"{i}.tfrecord", IMAGES[part], LABELS[part])
    sources = {}
    for kind in ("folder", "webdataset", "tfrecord"):
        config = small_config(data__source=kind, data__path=str(folder / kind))
        sources[kind] = open_source(config.data, "train")
    tars = sources["webdataset"]
    arrays = ArraySource(RNG.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8), np.arange(5))
    return sources | {
        "cached": IndexedSource(tars.root, tars.table, cache_bytes=1000),
        "mixture": MixtureSource([tars, arrays, sources["folder"]], [1.0, 2.0, 1.0]),
        "selection": SelectedSource(tars, np.array([7, 1, 3]), np.array([5, 6, 5]), ()),
    }


def contents(block):
    ends = (block.start + block.length).tolist()
    pieces = zip(block.start.tolist(), ends, strict=True)
    return [block.data[start:end].tobytes() for start, end in pieces]


def test_block_of_every_source_holds_what_it_reads(tmp_path):
    for name, source in open_all(tmp_path).items():
        examples = np.random.default_rng(1).integers(0, source.examples, 30)
        images, labels = source.read(examples)
        for _ in range(2):
            block = source.read_block(examples)
            assert contents(block) == images, name
            np.testing.assert_array_equal(block.labels, labels)
            assert block.labels.dtype == np.int32 and block.data.ctypes.data % 64 == 0


def test_example_that_an_index_makes_too_large_is_empty(tmp_path, caplog):
    tars = open_all(tmp_path)["webdataset"]
    os.truncate(tmp_path / "webdataset" / "0.tar", 2 * LARGEST)  # without using disk space
    length = tars.table.length.copy()
    length[3] = LARGEST + 1
    source = IndexedSource(tars.root, dataclasses.replace(tars.table, length=length))
    block = source.read_block(np.arange(6))
    assert contents(block) == [*IMAGES[:3], b"", *IMAGES[4:6]]
    assert "exceed the limit" in caplog.text


def test_reading_a_tar_costs_few_calls_of_python(tmp_path):
    source = open_all(tmp_path)["webdataset"]
    examples = np.random.default_rng(0).integers(0, source.examples, 512)
    source.read_block(examples)  # opens the shards
    calls = []

    def note(frame, event, argument):
        if event.endswith("call") and frame.f_code.co_filename.startswith(str(PACKAGE)):
            calls.append(event)

    sys.setprofile(note)
    try:
        source.read_block(examples)
    finally:
        sys.setprofile(None)
    assert len(calls) / 512 < 9  # more than 40 for an object of each image


@pytest.mark.parametrize("length", [0, 1, 127, 128, 70_000])
def test_image_of_a_block_becomes_a_string(length):
    data = RNG.integers(0, 256, length + 5, dtype=np.uint8)
    found = image_in(data, np.int64(3), np.int64(length)).numpy()
    assert found == data[3 : 3 + length].tobytes()
