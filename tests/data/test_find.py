"""Patterns, ranges and lists of shards, and folders of them."""

import pytest

from can_jax.data.sources.detect import kind_of
from can_jax.data.storage.find import expand_braces, find_shards
from can_jax.utils.errors import UserError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(root, pattern, kind="tar", **options):
    found = find_shards(f"{root}/{pattern}", "train", kind, **options)
    return [name.removeprefix(f"{root}/") for name in found]


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("a{00..02}", ["a00", "a01", "a02"]),
        ("{a,b{0..1},}c", ["ac", "b0c", "b1c", "c"]),
        ("{x{1,2},y}{3,4}", ["x13", "x14", "x23", "x24", "y3", "y4"]),
        ("{0..6..3}{a..c}", [f"{n}{c}" for n in "036" for c in "abc"]),
        ("{3..1}", ["3", "2", "1"]), ("{a}{}-{b", ["{a}{}-{b"]), ("{a{0..1}}", ["{a0}", "{a1}"]),
    ],
)  # fmt: skip
def test_braces_expand_as_in_a_shell(pattern, expanded):
    assert list(expand_braces(pattern)) == expanded


def test_patterns(tmp_path):
    touch(tmp_path, "m1/x-0.tar", "m2/x-0.tar", "m2/x-1.tar", "data[v1]/a.tar", "data[v1]/b.tar")
    assert names(tmp_path, "m{1..2}/x-0.tar") == ["m1/x-0.tar", "m2/x-0.tar"]
    assert names(tmp_path, "m?/*-[1-9].tar") == ["m2/x-1.tar"]
    assert names(tmp_path, "{m1,data[v1]}/*.tar") == [
        "data[v1]/a.tar",
        "data[v1]/b.tar",
        "m1/x-0.tar",
    ]
    assert names(tmp_path, "data[v1]/{a,b}.tar") == ["data[v1]/a.tar", "data[v1]/b.tar"]
    assert names(tmp_path, "data[v1]") == names(tmp_path, "data[[]v1]/[ab].tar")
    assert names(tmp_path, "**/x-*.tar") == ["m1/x-0.tar", "m2/x-0.tar", "m2/x-1.tar"]
    assert names(tmp_path, f"m1/x-0.tar::{tmp_path}/m2/x-{{0..1}}.tar::{tmp_path}/m1") == [
        "m1/x-0.tar", "m2/x-0.tar", "m2/x-1.tar",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"none\.tar does not exist"):
        names(tmp_path, f"m1/x-0.tar::{tmp_path}/none.tar")
    with pytest.raises(UserError, match=r"no file matches .*m\{3\.\.4\}/\*"):
        names(tmp_path, "m{3..4}/*")


def test_brackets_of_file_names_beside_wildcards(tmp_path):
    touch(tmp_path, "train[0]-0.tar", "train[0]-1.tar", "[a]/x-0.tar", "b0-0.tar", "b1-0.tar")
    assert names(tmp_path, "train[0]-*.tar") == ["train[0]-0.tar", "train[0]-1.tar"]
    assert names(tmp_path, "train[0]-[01].tar") == ["train[0]-0.tar", "train[0]-1.tar"]
    assert names(tmp_path, "train[[]0]-*.tar") == ["train[0]-0.tar", "train[0]-1.tar"]
    assert names(tmp_path, "[a]*/x-*.tar") == ["[a]/x-0.tar"]
    assert names(tmp_path, "b[01]-*.tar") == ["b0-0.tar", "b1-0.tar"]


def test_what_a_range_lists_and_is_not_there_is_said(tmp_path, caplog):
    touch(tmp_path, "00000.tar", "00001.tar", "00004.tar")
    assert names(tmp_path, "{00000..00004}.tar") == ["00000.tar", "00001.tar", "00004.tar"]
    assert "expands to 5 paths or patterns; no file matches 2 of them" in caplog.text
    assert f"{tmp_path}/00002.tar, {tmp_path}/00003.tar" in caplog.text
    caplog.clear()
    names(tmp_path, "{00000,x*}.tar")
    assert (
        "expands to 2 paths or patterns; no file matches 1 of them" in caplog.text
        and "x*.tar" in caplog.text
    )
    caplog.clear()
    names(tmp_path, "0000{0..1}.tar")
    assert not caplog.text


def test_folders_of_shards(tmp_path, caplog):
    touch(tmp_path, "a/0.tar", "a/deep/1.tar", "b/2.tar", ".hidden/3.tar", "b/c.txt")
    assert names(tmp_path, "") == ["a/0.tar", "a/deep/1.tar", "b/2.tar"]
    touch(tmp_path, "4.tar")
    assert names(tmp_path, "") == ["4.tar"]
    assert "3 shards in subfolders, such as a/0.tar, are left out" in caplog.text


def test_compressed_tars_in_a_folder(tmp_path, caplog):
    touch(tmp_path, "a.tar.gz", "b.tgz")
    with pytest.raises(UserError, match=r"2 compressed tars, such as .*data\.streaming=True"):
        names(tmp_path, "")
    assert names(tmp_path, "", compressed=True) == ["a.tar.gz", "b.tgz"]
    touch(tmp_path, "c.tar")
    assert names(tmp_path, "") == ["c.tar"] and "2 compressed tars" in caplog.text
    assert names(tmp_path, "", compressed=True) == ["a.tar.gz", "b.tgz", "c.tar"]


def test_files_beside_records_are_none(tmp_path):
    touch(
        tmp_path, "a.tfrecord", "a.tfrecord.idx", "b.tfrecord-00000-of-00001", "b-00000-of-00001",
        "c-00000-of-00001.parquet", "d-00000-of-00001.arrow", "e.array_record-00000-of-00001",
        "c-00000-of-00001-0a1b.parquet", "f.tfrecord.tmp", "g.tfrec", "dataset_info.json",
    )  # fmt: skip
    assert names(tmp_path, "", "tfrecord") == [
        "a.tfrecord", "b-00000-of-00001", "b.tfrecord-00000-of-00001", "g.tfrec",
    ]  # fmt: skip


def test_pattern_that_ends_in_a_star_selects_the_shards_of_all_depths(tmp_path, caplog):
    touch(tmp_path, "a.tar", "sub/b.tar", "README.md", "sub/meta.json")
    assert names(tmp_path, "") == ["a.tar"]
    assert f"the pattern {tmp_path}/**/* selects all shards" in caplog.text
    assert names(tmp_path, "**/*") == ["a.tar", "sub/b.tar"]
    assert "2 matching files do not have the name of a tar shard" in caplog.text
    assert kind_of(f"{tmp_path}/**/*").source == "webdataset"


def test_missing_shards_and_other_files_of_a_folder_are_logged(tmp_path, caplog):
    touch(
        tmp_path, "train-00000-of-00004.tar", "train-00003-of-00004.tar", "sizes.json", "LICENSE",
        "train-00001-of-00004.tar.part", "train-00002-of-00004.zip", "loose.png", "sub/a.png",
        "val-00000-of-00009.tar", "train-00000-of-00004.parquet",
    )  # fmt: skip
    assert names(tmp_path, "") == ["train-00000-of-00004.tar", "train-00003-of-00004.tar"]
    assert "2 of the 4 shards that the file names count are missing, for example " in caplog.text
    assert f"{tmp_path}/train-00001-of-00004, {tmp_path}/train-00002-of-00004;" in caplog.text
    assert "3 files that are not tar shards by name are left out: loose.png, train-" in caplog.text
    caplog.clear()
    touch(tmp_path, *(f"whole/x-{i:05d}-of-00002" for i in (0, 1)), "whole/x.json")
    touch(tmp_path, *(f"from_one/x-{i:05d}-of-00002.tar" for i in (1, 2)))
    assert len(names(tmp_path, "whole", "tfrecord")) == len(names(tmp_path, "from_one")) == 2
    assert not caplog.text
