"""Shards and indexes of strangers, which state more than they hold or lead elsewhere."""

import gzip
import io
import json
import os
import struct
import tarfile
import time
import tracemalloc

import numpy as np
import pytest

from can_jax.data.formats import shard_reader as stream
from can_jax.data.formats.records import FOOTER, HEADER, masked_crc32c
from can_jax.data.formats.shard_reader import read_tar, read_tfrecord
from can_jax.data.sources.example_table import FACTS, FOLDER, Table, load_table
from can_jax.data.sources.folder import open_folder
from can_jax.data.sources.shards import example_parser, open_webdataset
from can_jax.data.storage import reading
from can_jax.data.storage.files import Names
from can_jax.data.storage.reading import open_random
from can_jax.data.storage.walk import walk_local
from can_jax.utils.errors import UserError
from tests.data.samples import encode, example, random_image

IMAGE = encode(random_image(np.random.default_rng(0), 8, 8))
MANY = 3 * 2**19
PARSE = example_parser("image/encoded", None)


def tar_of(*members):
    """A tar of (kind, name, content), with headers as they come."""
    buffer = io.BytesIO()
    for kind, name, content in members:
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, len(content)
        buffer.write(info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512))
    return buffer.getvalue() + bytes(1024)


def peak_of(call):
    tracemalloc.start()
    found = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found, peak


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
@pytest.mark.parametrize("zipped", [True, False])
def test_names_and_attributes_of_a_member_are_short(tmp_path, kind, zipped):
    content = tar_of(
        (b"0", "a.png", IMAGE), (kind, "long", b"a" * MANY), (b"0", "b.png", IMAGE),
        (b"0", "c.png", IMAGE),
    )  # fmt: skip
    path = tmp_path / "train-0.tar"
    path.write_bytes(gzip.compress(content) if zipped else content)
    found, peak = peak_of(lambda: list(read_tar(str(path), set())))
    assert [image for image, _ in found] == [IMAGE] * 3
    if not zipped:  # zlib expands a block of any kind at once
        assert peak < MANY / 2
        assert open_webdataset(str(path), "train").examples == 3


def test_image_of_a_compressed_tar_is_bounded(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(stream, "LARGEST", 2**20)
    content = tar_of((b"0", "a.png", bytes(MANY)), (b"0", "b.png", IMAGE))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(content))
    assert list(read_tar(str(tmp_path / "a.tar.gz"), set())) == [(IMAGE, -1)]
    assert "1 images of more than" in caplog.text


@pytest.mark.parametrize("label", [b" " * MANY + b"3", b"1" * 5000, b"-" * 200])
def test_label_that_is_too_long_is_no_number(tmp_path, label):
    content = tar_of((b"0", "a.png", IMAGE), (b"0", "a.cls", label), (b"0", "b.png", IMAGE))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(content))
    assert list(read_tar(str(tmp_path / "a.tar.gz"), set())) == [(IMAGE, -1)] * 2


def header_of(length):
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", masked_crc32c(packed))


def record_of(content):
    return header_of(len(content)) + content + struct.pack("<I", masked_crc32c(content))


@pytest.mark.parametrize("length", [2**63, 2**40, 2**28 + 1, 2**27])
@pytest.mark.parametrize("zipped", [True, False])
def test_record_that_states_too_much_is_passed_over(tmp_path, length, zipped):
    record = record_of(example(IMAGE))
    content = record + header_of(length) + b"rest" + record * 2
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(content) if zipped else content)
    found, peak = peak_of(lambda: list(read_tfrecord(str(path), PARSE, set())))
    assert [image for image, _ in found] == [IMAGE] * 3 and peak < 2**28


def test_many_wrong_records_take_no_quadratic_time(tmp_path):
    record = record_of(example(IMAGE))
    wrong = header_of(2**27) + b"1234"
    (tmp_path / "a").write_bytes((wrong + record) * 300 + wrong * 20_000 + record)
    began = time.monotonic()
    assert len(list(read_tfrecord(str(tmp_path / "a"), PARSE, set()))) == 301
    assert time.monotonic() - began < 60
    assert len(wrong) == HEADER + FOOTER


def test_file_without_an_end_is_not_read_whole(tmp_path):
    with open(tmp_path / "0.png", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=f"exceed the limit of {reading.LARGEST} bytes"):
        open_random(str(tmp_path / "0.png")).read(0, -1)
    with pytest.raises(ValueError, match="the offset -1 is negative"):
        open_random(str(tmp_path / "0.png")).read(-1, 4)
    (tmp_path / "1.png").write_bytes(b"abc")
    assert open_random(str(tmp_path / "1.png")).read(1, 2**62) == b"bc"
    source = open_folder(str(tmp_path), "train")
    assert source.read(np.arange(2))[0] == [b"", b"abc"]


def index(folder, names=("0.png", "1.png"), **columns):
    """An index of two images in a folder."""
    for number in range(2):
        (folder / f"{number}.png").write_bytes(IMAGE)
    count = np.arange(2, dtype=np.int32)
    rows = {"file": count, "offset": count * 0, "length": count * 0 - 1, "label": count * 0 - 1}
    place = folder / FOLDER / "train"
    Table(Names.of(list(names)), **rows | columns).save(place, {"source": "folder"})
    return place


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret"])
def test_names_of_an_index_stay_below_its_folder(tmp_path, name, caplog):
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "data" / "a").mkdir(parents=True)
    index(tmp_path / "data", ("0.png", name))
    source = open_folder(str(tmp_path / "data"), "train")
    assert source.read(np.arange(2))[0] == [IMAGE, b""]
    assert "is not below" in caplog.text


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"file": np.array([0, 2], np.int32)}, "an example refers to a missing file name"),
        ({"file": np.array([-1, 0], np.int32)}, "an example refers to a missing file name"),
        ({"file": np.array([0.0, 1.0])}, "file.npy has the type float64"),
        ({"offset": np.zeros((2, 1), np.int64)}, "offset.npy has the type int64 and the shape"),
        ({"length": np.zeros(3, np.int64)}, "its columns differ in length"),
        ({"label": np.array([0, 1], np.int32), "label_names": ("a",)}, "a label has no name"),
        (
            {"names": Names(np.zeros(4, np.uint8), np.array([9, 4]))},
            "the offsets of its file names are invalid",
        ),
        (
            {"names": Names(np.zeros(4, np.uint8), np.array([2, 99]))},
            "the offsets of its file names are invalid",
        ),
    ],
)
def test_numbers_of_an_index_are_checked(tmp_path, columns, message):
    names, own = columns.get("names"), {"names", "label", "label_names"}
    place = index(tmp_path, **{k: v for k, v in columns.items() if k in own - {"names"}})
    for name in columns.keys() - own:
        np.save(place / f"{name}.npy", columns[name])
    if names:
        np.save(place / "names.npy", names.text)
        np.save(place / "name_ends.npy", names.ends)
    with pytest.raises(UserError, match=message):
        load_table(place)


@pytest.mark.parametrize(
    "changes", [{"examples": "2"}, {"label_names": [1]}, {"sizes": [1]}, {"undecodable": "%s"}]
)
def test_facts_of_an_index_are_checked(tmp_path, changes):
    place = index(tmp_path)
    facts = json.loads((place / FACTS).read_text())
    (place / FACTS).write_text(json.dumps(facts | changes))
    with pytest.raises(UserError, match="was not written by can_jax"):
        load_table(place)


@pytest.mark.parametrize("count", [2, 12])
def test_folders_that_all_link_to_each_other_are_found_once(tmp_path, count):
    for i in range(count):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "image.png").touch()
        for j in range(count):
            (tmp_path / str(i) / f"to{j}").symlink_to(tmp_path / str(j))
    ways = walk_local(str(tmp_path))
    found = [os.path.join(folder, name) for folder, names in ways for name in names]
    assert sorted(found) == sorted(str(tmp_path / str(i) / "image.png") for i in range(count))


def test_circle_behind_one_link_is_entered_once(tmp_path):
    for name, other in (("x", "y"), ("y", "x")):
        (tmp_path / "far" / name).mkdir(parents=True)
        (tmp_path / "far" / name / f"{name}.png").touch()
        (tmp_path / "far" / name / other).symlink_to(tmp_path / "far" / other)
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "in").symlink_to(tmp_path / "far" / "x")
    found = dict(walk_local(str(tmp_path / "near")))
    near = str(tmp_path / "near")
    assert found == {near: [], f"{near}/in": ["x.png"], f"{near}/in/y": ["y.png"]}
