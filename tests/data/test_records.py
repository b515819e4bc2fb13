"""TFRecords that are damaged, or not what they seem."""

import gzip

import numpy as np
import pytest

from can_jax.data.formats.records import SEARCH, scan_tfrecord
from can_jax.data.formats.shard_reader import read_tfrecord
from can_jax.data.index.build import build_index
from can_jax.data.index.examine import Plan
from can_jax.data.sources.shards import example_parser, open_tfrecord
from tests.data.samples import encode, write_tfrecord

PARSE = example_parser("image/encoded", "image/class/label")
RNG = np.random.default_rng(0)
IMAGES = [encode(RNG.integers(0, 256, (12, 9, 3), dtype=np.uint8)) for _ in range(7)]


def offsets(path):
    return (scan_tfrecord(str(path)).offset - 12).tolist()


def damage(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_record_whose_checksum_is_wrong_is_no_image(tmp_path, caplog):
    path = tmp_path / "train.tfrecord"
    write_tfrecord(path, IMAGES, list(range(7)))
    damage(path, offsets(path)[3] + 60)
    source = open_tfrecord(str(tmp_path), "train")
    images, labels = source.read(np.arange(7))
    assert images == [*IMAGES[:3], b"", *IMAGES[4:]] and labels.tolist() == [0, 1, 2, -1, 4, 5, 6]
    told = f"{path}, at byte {offsets(path)[3] + 12}: the checksum of the record is wrong"
    assert told in caplog.text
    streamed = list(read_tfrecord(str(path), PARSE, set()))
    assert streamed == list(zip(images, labels.tolist(), strict=True))
    plan = Plan("tfrecord", str(tmp_path), "read")
    build_index(plan, [path.name], tmp_path / "index")
    assert "checksum of the record is wrong" in (tmp_path / "index/undecodable.txt").read_text()
    indexed = open_tfrecord(str(tmp_path), "train", index=str(tmp_path / "index"))
    assert indexed.read(np.arange(6))[1].tolist() == [0, 1, 2, 4, 5, 6]


@pytest.mark.parametrize("place", [0, 5, 10])  # in the length, or in its checksum
@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_header_costs_one_record(tmp_path, place, zipped, caplog):
    path = tmp_path / "train.tfrecord"
    write_tfrecord(path, IMAGES)
    third, fourth = offsets(path)[2:4]
    damage(path, third + place)
    found = scan_tfrecord(str(path))
    told = f"no valid TFRecord at bytes {third} to {fourth}, which are skipped"
    assert len(found.offset) == 6 and told in found.problem
    if zipped:
        path.write_bytes(gzip.compress(path.read_bytes()))
    streamed = [image for image, _ in read_tfrecord(str(path), PARSE, set())]
    assert streamed == [*IMAGES[:2], *IMAGES[3:]] and told in caplog.text


def test_hole_of_zeros_longer_than_a_search(tmp_path):
    path = tmp_path / "train.tfrecord"
    write_tfrecord(path, IMAGES)
    content = path.read_bytes()
    third = offsets(path)[2]
    hole = bytes(SEARCH - 5 + third)
    path.write_bytes(content[:third] + hole + content[third:])
    found = scan_tfrecord(str(path))
    assert len(found.offset) == 7 and f"bytes {third} to {third + len(hole)}" in found.problem
    assert [image for image, _ in read_tfrecord(str(path), PARSE, set())] == IMAGES


def test_labels_beyond_int32_count_as_unknown(tmp_path, caplog):
    path = tmp_path / "train.tfrecord"
    write_tfrecord(path, IMAGES[:3], [2**40, 5, -(2**40)])
    source = open_tfrecord(str(tmp_path), "train", label_key="image/class/label")
    assert source.read(np.arange(3))[1].tolist() == [-1, 5, -1]
    assert [label for _, label in read_tfrecord(str(path), PARSE, set())] == [-1, 5, -1]
    assert caplog.text.count("has labels outside the range of int32; they count as unknown") <= 1
    build_index(Plan("tfrecord", str(tmp_path)), [path.name], tmp_path / "index")
    assert open_tfrecord(str(tmp_path), "train", index=str(tmp_path / "index")).examples == 3


@pytest.mark.parametrize("compress", [gzip.compress, __import__("zlib").compress])
def test_compressed_shard_points_to_streaming(tmp_path, compress):
    path = tmp_path / "train.tfrecord"
    write_tfrecord(path, IMAGES)
    path.write_bytes(compress(path.read_bytes()))
    assert "stream it in training by config.data.streaming=True" in scan_tfrecord(str(path)).problem
