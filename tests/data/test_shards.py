"""TFRecord and tar shards: what is found in them, whole, cut off and damaged."""

import gzip

import numpy as np
import pytest

from can_jax.data.formats.records import masked_crc32c, scan_tfrecord
from can_jax.data.formats.webdataset import scan_tar
from can_jax.data.sources.shards import example_parser, open_tfrecord, open_webdataset
from can_jax.data.storage.find import find_shards
from can_jax.utils.errors import UserError
from can_jax.utils.tensorflow import tensorflow
from tests.data.samples import example, write_tar, write_tfrecord, write_webdataset

CONTENTS = [bytes([i]) * (50 + i) for i in range(7)]


def read_all(source):
    images, labels = source.read(np.arange(source.examples))
    return images, labels.tolist()


@pytest.mark.parametrize("labels", [None, [3, 1, 4, 1, 5, 9, 2]])
@pytest.mark.parametrize("kind", ["tfrecord", "webdataset"])
def test_shards_give_back_what_was_written(tmp_path, kind, labels):
    part = [labels and labels[:4], labels and labels[4:]]
    for i, contents in enumerate((CONTENTS[:4], CONTENTS[4:])):
        if kind == "tfrecord":
            name = f"mine-train.tfrecord-{i:05d}-of-00002"
            write_tfrecord(tmp_path / name, contents, part[i])
        else:
            write_webdataset(tmp_path / f"train-{i:06d}.tar", contents, part[i])
    source = (open_tfrecord if kind == "tfrecord" else open_webdataset)(str(tmp_path), "train")
    assert read_all(source) == (CONTENTS, labels or [-1] * 7)
    assert source.read(np.array([5, 2]))[0] == [CONTENTS[5], CONTENTS[2]]
    assert "1" in source.describe(5) and "at byte" in source.describe(5)


def test_features_of_other_names(tmp_path, caplog):
    write_tfrecord(tmp_path / "a.tfrecord", CONTENTS, image_key="jpeg")
    source = open_tfrecord(str(tmp_path / "a.tfrecord"), "train", image_key="jpeg")
    assert read_all(source)[0] == CONTENTS
    source = open_tfrecord(
        str(tmp_path / "a.tfrecord"), "train", image_key="jpeg", label_key="jpeg"
    )
    assert read_all(source) == (CONTENTS, [-1] * 7)
    assert caplog.text.count("the feature 'jpeg' is a bytes_list, not an int64_list") == 1
    with pytest.raises(
        UserError, match=r"no image in the feature 'image/enc.* jpeg: set .*image_key"
    ):
        open_tfrecord(str(tmp_path / "a.tfrecord"), "train")


def test_only_the_first_image_and_label_of_a_record_are_used(caplog):
    tf = tensorflow()
    feature = {
        "two images": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"a", b"b"])),
        "two labels": tf.train.Feature(int64_list=tf.train.Int64List(value=[3, 7])),
    }
    record = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    parse = example_parser("two images", "two labels")
    assert [parse(record), parse(record)] == [(b"a", 3)] * 2
    assert caplog.text.count("several images in the feature 'two images'; only the first") == 1
    assert caplog.text.count("several labels in the feature 'two labels'; only the first") == 1


@pytest.mark.parametrize("cut", [1, 4, 30, 80])
@pytest.mark.parametrize("kind", ["tfrecord", "webdataset"])
def test_cut_off_shard_is_used_as_far_as_it_goes(tmp_path, kind, cut, caplog):
    if kind == "tfrecord":
        path = tmp_path / "train.tfrecord"
        write_tfrecord(path, CONTENTS)
    else:
        path = tmp_path / "train.tar"
        write_tar(path, [(f"{i}.png", content) for i, content in enumerate(CONTENTS)])
        cut += 3072 + 456  # zeros at the end, which may be missing, and the last member's padding
    path.write_bytes(path.read_bytes()[:-cut])
    source = (open_tfrecord if kind == "tfrecord" else open_webdataset)(str(tmp_path), "train")
    images, _ = read_all(source)
    assert images == CONTENTS[: len(images)] and len(images) == 6
    assert str(path) in caplog.text and "6 of its examples are used" in caplog.text


def test_damaged_length_costs_one_record(tmp_path):
    write_tfrecord(tmp_path / "a", CONTENTS)
    content = bytearray((tmp_path / "a").read_bytes())
    third = scan_tfrecord(str(tmp_path / "a")).offset[2] - 12
    content[third] ^= 1
    (tmp_path / "a").write_bytes(content)
    found = scan_tfrecord(str(tmp_path / "a"))
    fourth = third + 16 + len(example(CONTENTS[2]))
    assert len(found.offset) == 6
    assert f"no valid TFRecord at bytes {third} to {fourth}, which are skipped" in found.problem


@pytest.mark.parametrize("suffix", ["tfrecord", "tar"])
def test_nothing_in_any_shard_is_one_line(tmp_path, suffix):
    (tmp_path / f"train.{suffix}").write_bytes(gzip.compress(b"x" * 5000))
    opener = open_tfrecord if suffix == "tfrecord" else open_webdataset
    with pytest.raises(UserError, match=rf"none of the 1 shards has an example; .*train\.{suffix}"):
        opener(str(tmp_path), "train")


def test_members_of_an_example_in_a_tar(tmp_path):
    members = [
        ("a/0001.txt", b"caption"), ("a/0001.jpg", b"one"), ("a/0001.cls", b"7\n"),
        ("a/0002.cls", b"8"), ("a/0002.seg.png", b"mask"), ("a/0002.png", b"two"),
        ("b/0002.JPEG", b"three"), ("b/.0003.jpg", b"hidden"), ("b/0004.json", b"{}"),
        ("b/0005.cls", b"no number"), ("b/0005.webp", b"four"),
    ]  # fmt: skip
    write_tar(tmp_path / "train.tar", members)
    source = open_webdataset(str(tmp_path), "train")
    assert read_all(source) == ([b"one", b"two", b"three", b"four"], [7, 8, -1, -1])
    assert len(scan_tar(str(tmp_path / "train.tar")).offset) == 4


def test_which_shards_belong_to_a_split(tmp_path):
    for name in ("a-train-0.tar", "a-train-1.tar", "a-val-0.tar", "trainer.tar", "x.txt"):
        (tmp_path / name).touch()

    def names(pattern, split="train"):
        return [path.removeprefix(f"{tmp_path}/") for path in find_shards(pattern, split, "tar")]

    assert names(str(tmp_path)) == ["a-train-0.tar", "a-train-1.tar"]
    assert names(str(tmp_path), "val") == ["a-val-0.tar"]
    assert names(f"{tmp_path}/a-{{split}}-*.tar", "val") == ["a-val-0.tar"]
    assert names(f"{tmp_path}/a-train-{{0..1}}.tar") == ["a-train-0.tar", "a-train-1.tar"]
    assert names(f"{tmp_path}/trainer.tar") == ["trainer.tar"]
    with pytest.raises(UserError, match=rf"no tar shard of the split 'test' in {tmp_path}"):
        names(str(tmp_path), "test")
    with pytest.raises(UserError, match="does not exist"):
        names(f"{tmp_path}/none")
    with pytest.raises(UserError, match="no file matches"):
        names(f"{tmp_path}/b*.tar")


def test_check_sum_is_that_of_the_standard():
    unmasked = (masked_crc32c(b"123456789") - 0xA282EAD8) & 0xFFFFFFFF
    assert ((unmasked >> 17 | unmasked << 15) & 0xFFFFFFFF) == 0xE3069283  # RFC 3720, B.4
