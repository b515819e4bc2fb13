"""Tars with dots in names, links, sparse members and damage: what is used, and what is said."""

import io
import os
import tarfile

import numpy as np
import pytest
from absl import logging

from can_jax.data.formats import webdataset
from can_jax.data.formats.shard_reader import read_tar
from can_jax.data.formats.webdataset import scan_tar
from can_jax.data.sources.shards import open_webdataset
from can_jax.data.storage import reading
from can_jax.utils.errors import UserError
from tests.data.samples import write_tar


def read_both(path):
    """The examples of a tar, by offsets and as a stream, which agree; and what was found."""
    found = scan_tar(str(path))
    content = path.read_bytes()
    places = zip(found.offset.tolist(), found.length.tolist(), strict=True)
    images = [content[start : start + length] for start, length in places]
    examples = list(zip(images, found.label.tolist(), strict=True))
    return examples, list(read_tar(str(path), set())), found


def images(names):
    return [(name, name.encode()) for name in names]


@pytest.mark.parametrize(
    "names",
    [
        [f"photo.2019.{i:02d}.jpg" for i in range(5)],
        [f"St._Mary_{i}.jpg" for i in range(3)],
        ["www.example.com_0.jpg", "www.example.com_1.jpg", "www.sample.org.jpg"],
        ["Dr.Jones.png", "Dr.Smith.png"],
        ["photo.2019.jpg", "photo.2020.jpg", "photo.jpg"],
        ["photo.jpg", "photo.1.jpg", "photo.2.jpg"],
        ["v1.0/a.jpg", "v1.0/b.jpg", "v1.1/b.jpg"],
        [f"x.{i}.webp" for i in range(600)],  # more than wait for a label
    ],
)
def test_images_whose_names_differ_behind_a_dot_are_examples(tmp_path, names):
    write_tar(tmp_path / "train.tar", images(names))
    examples, streamed, found = read_both(tmp_path / "train.tar")
    assert [image.decode() for image, _ in examples] == names
    assert examples == streamed and not found.unused and not found.problem


@pytest.mark.parametrize(
    ("names", "used", "second"),
    [
        (["1.jpg", "1.seg.png", "2.jpg", "2.seg.png"], ["1.jpg", "2.jpg"], 2),
        (["1.seg.png", "1.png"], ["1.png"], 1),
        (["1.depth.png", "1.jpg", "2.gt.png", "2.jpg"], ["1.jpg", "2.jpg"], 2),
        (["1.color.png", "1.depth.png", "1.jpg"], ["1.jpg"], 2),
        (["1.mask.png", "1.a.jpg", "1.b.jpg"], ["1.a.jpg", "1.b.jpg"], 1),
        (["1.jpg", "1.png", "1.webp"], ["1.jpg"], 2),
        (["1.left.png", "1.right.png"], ["1.left.png"], 1),
        (["a.b.jpg", "a.b.png", "a.c.jpg"], ["a.b.jpg", "a.c.jpg"], 1),
    ],
)
def test_second_images_of_an_example_are_counted(tmp_path, names, used, second):
    write_tar(tmp_path / "train.tar", images(names))
    examples, streamed, found = read_both(tmp_path / "train.tar")
    assert [image.decode() for image, _ in examples] == used
    ((kind, count),) = found.unused.items()
    unused = set(names) - set(used)
    kinds = {f"extra images of the same example, such as {name}" for name in unused}
    assert examples == streamed and count == second and kind in kinds


def test_labels_of_names_with_dots(tmp_path):
    members = [
        ("a.0.jpg", b"a0"), ("a.0.cls", b"3"), ("a.1.cls", b"4"), ("a.1.jpg", b"a1"),
        ("b.0.jpg", b"b0"), ("b.1.jpg", b"b1"), ("b.cls", b"7"), ("b.1.json", b"{}"),
        ("c.jpg", b"c"), ("c.coarse.cls", b"9"), ("d.cls", b"1"),
    ]  # fmt: skip
    write_tar(tmp_path / "train.tar", members)
    examples, streamed, found = read_both(tmp_path / "train.tar")
    assert examples == [(b"a0", 3), (b"a1", 4), (b"b0", 7), (b"b1", 7), (b"c", 9)] == streamed
    assert found.unused == {".json": 1, ".cls members without an image": 1}


@pytest.mark.parametrize("order", ["in pairs", "images first", "labels first"])
def test_no_label_of_many_images_of_one_key_is_lost(tmp_path, order):
    pairs = [
        (f"photo.2019.{i:03d}{suffix}", content)
        for i in range(600)
        for suffix, content in ((".jpg", b"x"), (".cls", b"%d" % i))
    ]
    if order != "in pairs":
        pairs.sort(key=lambda member: member[0].endswith("cls") == (order == "images first"))
    write_tar(tmp_path / "train.tar", pairs)
    examples, streamed, found = read_both(tmp_path / "train.tar")
    assert [label for _, label in examples] == list(range(600))
    assert examples == streamed and not found.unused


def test_labels_behind_too_many_bytes_of_images_are_counted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(webdataset, "PENDING", 25)
    members = [(f"p.{i}.jpg", b"0123456789") for i in range(5)]
    write_tar(tmp_path / "a.tar", members + [(f"p.{i}.cls", b"%d" % i) for i in range(5)])
    write_tar(tmp_path / "b.tar", [*members, ("p.cls", b"7")])
    for name, labels in [("a", [-1, -1, -1, 3, 4]), ("b", [-1, -1, -1, 7, 7])]:
        streamed = read_tar(str(tmp_path / f"{name}.tar"), set())
        assert [label for _, label in streamed] == labels
    assert caplog.text.count("not used: 3 labels too far behind their images in the tar") == 2
    assert scan_tar(str(tmp_path / "a.tar")).label.tolist() == [0, 1, 2, 3, 4]


def test_labels_of_other_names_in_a_group_are_counted(tmp_path):
    members = [
        ("a.0.jpg", b"a0"), ("a.2.jpg", b"a2"), ("a.1.cls", b"4"), ("a.2.cls", b"5"),
        ("c.jpg", b"c"), ("c.cls", b"1"), ("c.coarse.cls", b"9"),
    ]  # fmt: skip
    write_tar(tmp_path / "train.tar", members)
    examples, streamed, found = read_both(tmp_path / "train.tar")
    assert examples == [(b"a0", -1), (b"a2", 5), (b"c", 1)] == streamed
    assert found.unused == {
        ".cls members without an image": 1, "extra labels of the same image": 1
    }  # fmt: skip


def test_labels_that_are_no_integers_are_counted(tmp_path, caplog):
    texts = [b"cat", b"1.0", b"", b" 12\n", b"1.5", b"nan", b"-3", b"dog\xff"]
    members = []
    for number, text in enumerate(texts):
        members += [(f"{number}.jpg", b"x"), (f"{number}.cls", text)]
    for name in ("train-0.tar", "train-1.tar"):
        write_tar(tmp_path / name, members)
    examples, streamed, _ = read_both(tmp_path / "train-0.tar")
    assert [label for _, label in examples] == [-1, 1, -1, 12, -1, -1, -3, -1]
    assert examples == streamed
    caplog.clear()
    open_webdataset(str(tmp_path), "train")
    told = "labels that are not integers and count as unknown, such as 'cat' in 0.cls"
    assert f"not used: 10 {told}" in caplog.text and len(caplog.records) == 1
    caplog.clear()
    reported = set()
    for name in ("train-0.tar", "train-1.tar"):
        list(read_tar(str(tmp_path / name), reported))
    assert caplog.text.count(f"5 {told}") == 1


def test_what_is_not_used_is_said_by_kind(tmp_path, caplog):
    for number in range(2):
        names = ["1.jpg", "1.txt", "2.heic", "3.JXL", "4", "._5.jpg"]
        write_tar(tmp_path / f"train-{number}.tar", images(names))
    assert open_webdataset(str(tmp_path), "train").examples == 2
    assert "not used: 2 .txt, 2 .heic, 2 .jxl, 2 without a suffix" in caplog.text
    caplog.clear()
    reported = set()
    for number in range(2):
        list(read_tar(str(tmp_path / f"train-{number}.tar"), reported))
    assert caplog.text.count("not used: 1 .txt, 1 .heic, 1 .jxl, 1 without a suffix") == 1


def write_links(path):
    with tarfile.open(path, "w") as tar:
        for name, kind, link in [
            ("a/1.jpg", None, b"one"), ("blob", None, b"two"),
            ("a/2.jpg", tarfile.LNKTYPE, "blob"), ("a/3.jpg", tarfile.SYMTYPE, "1.jpg"),
            ("a/4.jpg", tarfile.SYMTYPE, "./../a/3.jpg"), ("a/5.jpg", tarfile.SYMTYPE, "6.jpg"),
            ("a/6.jpg", tarfile.SYMTYPE, "5.jpg"), ("a/7.jpg", tarfile.SYMTYPE, "/etc/hostname"),
            ("a/8.jpg", tarfile.SYMTYPE, "9.jpg"), ("a/9.jpg", None, b"nine"),
            ("a/pipe.jpg", tarfile.FIFOTYPE, ""),
        ]:  # fmt: skip
            info = tarfile.TarInfo(name)
            if kind is None:
                info.size = len(link)
                tar.addfile(info, io.BytesIO(link))
            else:
                info.type, info.linkname = kind, link
                tar.addfile(info)


def test_links_lead_to_the_bytes_of_their_targets(tmp_path):
    write_links(tmp_path / "train.tar")
    examples, streamed, found = read_both(tmp_path / "train.tar")
    assert [image for image, _ in examples] == [b"one", b"two", b"one", b"one", b"nine", b"nine"]
    assert found.unused == {
        "without a suffix": 1, "members that are not regular files": 1,
        "links whose target is not a file in the tar": 3,
    }  # fmt: skip
    assert [image for image, _ in streamed] == [b"one", b"nine"]


def test_links_are_counted_in_a_stream(tmp_path, caplog):
    write_links(tmp_path / "train.tar")
    list(read_tar(str(tmp_path / "train.tar"), set()))
    assert "7 links, which are not followed in a stream" in caplog.text


def sparse_member(name, size, parts):
    """A member of GNU tar's old sparse format: parts of the content with zeros between them."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    body = b"".join(content for _, content in parts)
    header[124:136] = b"%011o\0" % len(body)
    header[156:157] = tarfile.GNUTYPE_SPARSE
    for number, (offset, content) in enumerate(parts):
        header[386 + 24 * number : 410 + 24 * number] = b"%011o\0%011o\0" % (offset, len(content))
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + body + bytes(-len(body) % 512)


def test_sparse_members_are_counted_and_nothing_behind_them_is_lost(tmp_path):
    write_tar(tmp_path / "train.tar", images(["1.jpg", "3.jpg"]))
    content = (tmp_path / "train.tar").read_bytes()
    sparse = sparse_member("2.jpg", 10**9, [(0, b"x" * 100), (5000, b"y" * 700)])
    (tmp_path / "train.tar").write_bytes(content[:1024] + sparse + content[1024:])
    examples, streamed, found = read_both(tmp_path / "train.tar")
    assert [image for image, _ in examples] == [b"1.jpg", b"3.jpg"]
    assert examples == streamed
    assert found.unused == {"sparse members": 1} and not found.problem


def contents(count):
    rng = np.random.default_rng(0)
    return [(f"{i}.jpg", rng.bytes(700 + 300 * i)) for i in range(count)]


def headers(path):
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


def flip(data, place):
    data[place + 20] ^= 1
    return place, place + 512


def hole(data, place):
    start = place // 4096 * 4096
    data[start : start + 4096] = bytes(4096)
    return start, start + 4096


@pytest.mark.parametrize("damage", [flip, hole])
@pytest.mark.parametrize("which", [0, 2, 5])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_damage_costs_what_it_touches_and_is_said(tmp_path, damage, which, form):
    members = contents(6)
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(
                f"{'long/' * 30}{name}" if form != tarfile.USTAR_FORMAT else name
            )
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    starts = headers(path)
    data = bytearray(path.read_bytes())
    first, last = damage(data, starts[which])
    path.write_bytes(data)
    examples, streamed, found = read_both(path)
    assert examples == streamed
    ends = [*starts[1:], len(data)]
    whole = [
        content
        for (_, content), start, end in zip(members, starts, ends, strict=True)
        if end <= first or start >= last
    ]
    used = [image for image, _ in examples]
    assert [image for image in used if image in whole] == whole and len(whole) >= 3
    assert "skipped" in found.problem and "bytes at offset" in found.problem


def test_damage_is_logged_with_its_byte(tmp_path, caplog):
    write_tar(tmp_path / "train.tar", contents(6))
    third, fourth = headers(tmp_path / "train.tar")[2:4]
    data = bytearray((tmp_path / "train.tar").read_bytes())
    flip(data, third)
    (tmp_path / "train.tar").write_bytes(data)
    assert open_webdataset(str(tmp_path), "train").examples == 5
    told = f"is damaged: skipped {fourth - third} bytes at offset {third} without a valid header"
    assert told in caplog.text and "5 of its examples are used" in caplog.text
    caplog.clear()
    assert len(list(read_tar(str(tmp_path / "train.tar"), set()))) == 5
    assert told in caplog.text


def test_what_follows_the_last_member_must_be_zeros(tmp_path):
    write_tar(tmp_path / "train.tar", contents(3))
    content = (tmp_path / "train.tar").read_bytes()
    end = headers(tmp_path / "train.tar")[2] + 512 + 1536
    for rest, told in [
        (b"", None), (bytes(2048), None), (b"x" * 700, f"bytes at offset {end}"),
        (bytes(2**21), f"bytes, from byte {end} on"),
    ]:  # fmt: skip
        (tmp_path / "train.tar").write_bytes(content + rest)
        examples, streamed, found = read_both(tmp_path / "train.tar")
        assert len(examples) == len(streamed) == 3
        assert found.problem is None if told is None else told in found.problem


def test_tars_one_behind_the_other_are_read_whole(tmp_path):
    write_tar(tmp_path / "a.tar", contents(3))
    one = (tmp_path / "a.tar").read_bytes()
    end = headers(tmp_path / "a.tar")[2] + 512 + 1536
    for start in (one, one[:end] + bytes(1024)):
        (tmp_path / "a.tar").write_bytes(start * 2 + one)
        examples, streamed, found = read_both(tmp_path / "a.tar")
        assert len(examples) == len(streamed) == 9 and not found.problem
    (tmp_path / "a.tar").write_bytes(one[:end] + bytes(512) + one)
    assert "skipped" in read_both(tmp_path / "a.tar")[2].problem


@pytest.mark.parametrize("blocks", [2, 20, 40, 64, 128, 256, 1000, 2048])
def test_tars_with_other_padding_are_joined_whole(tmp_path, blocks):
    write_tar(tmp_path / "a.tar", contents(3))
    one = (tmp_path / "a.tar").read_bytes()
    end = headers(tmp_path / "a.tar")[2] + 512 + 1536
    one = one[:end] + bytes(1024)
    one += bytes(-len(one) % (512 * blocks))
    (tmp_path / "a.tar").write_bytes(one * 3)
    examples, streamed, found = read_both(tmp_path / "a.tar")
    assert len(examples) == len(streamed) == 9 and not found.problem


def test_zeros_between_members_are_no_damage_but_named(tmp_path):
    write_tar(tmp_path / "a.tar", contents(3))
    one = (tmp_path / "a.tar").read_bytes()
    end = headers(tmp_path / "a.tar")[2] + 512 + 1536
    (tmp_path / "a.tar").write_bytes(one[:end] + bytes(512 * 7) + one)
    examples, streamed, found = read_both(tmp_path / "a.tar")
    assert len(examples) == len(streamed) == 6 and "damaged" not in found.problem
    told = f"has only zeros in 3584 bytes at offset {end}, which are skipped"
    assert told in found.problem


def test_headers_for_all_members_are_no_damage(tmp_path):
    path = tmp_path / "train.tar"
    attributes = {"comment": "x" * 600}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=attributes) as tar:
        for name in ("1.jpg", "long/" * 40 + "2.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"1234"))
    content = path.read_bytes()
    for data, count in ((content, 2), (content * 2, 4)):
        path.write_bytes(data)
        examples, streamed, found = read_both(path)
        assert len(examples) == count and examples == streamed and found.problem is None


@pytest.mark.parametrize("junk", [b"<!DOCTYPE html>\n" * 100, b"<html></html>", b"\x01" * 20000])
def test_page_named_as_a_tar_is_said_to_be_none(tmp_path, junk, caplog):
    (tmp_path / "train.tar").write_bytes(junk)
    with pytest.raises(UserError, match=r"train\.tar is not a (complete, uncompressed )?tar"):
        open_webdataset(str(tmp_path), "train")
    assert list(read_tar(str(tmp_path / "train.tar"), set())) == []
    assert "train.tar is not a tar" in caplog.records[-1].getMessage()


def test_damage_of_many_shards_is_one_line(tmp_path, caplog):
    write_tar(tmp_path / "train-0.tar", contents(3))
    content = (tmp_path / "train-0.tar").read_bytes()
    for number in range(8):
        (tmp_path / f"train-{number}.tar").write_bytes(content[:4000])
    assert open_webdataset(str(tmp_path), "train").examples == 16
    (record,) = caplog.records
    assert record.getMessage().count("is truncated") == 3
    assert "5 more shards have such problems" in record.getMessage()
    caplog.clear()
    reported = set()
    for _ in range(3):
        list(read_tar(str(tmp_path / "train-1.tar"), reported))
    assert len(caplog.records) == 1


def test_file_closes_after_its_module_is_gone(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x")
    file = reading.open_random(str(tmp_path / "a"))
    monkeypatch.setattr(reading, "os", None)  # as Python does at its exit
    file.__del__()
    monkeypatch.undo()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file._descriptor)
    file._descriptor = None


def test_labels_beyond_int32_count_as_unknown(tmp_path, caplog):
    members = [
        ("1.jpg", b"1"), ("1.cls", b"281474976710656"), ("2.jpg", b"2"), ("2.cls", b"2147483647"),
        ("3.jpg", b"3"), ("3.cls", b"-99999999999"), ("4.jpg", b"4"), ("4.cls", b"2147483648"),
    ]  # fmt: skip
    write_tar(tmp_path / "train.tar", members)
    examples, streamed, _ = read_both(tmp_path / "train.tar")
    assert [label for _, label in examples] == [-1, 2147483647, -1, -1]
    assert examples == streamed
    logging.set_verbosity(logging.WARNING)
    open_webdataset(str(tmp_path), "train")
    assert "3 labels outside the range of int32, which count as unknown" in caplog.text
