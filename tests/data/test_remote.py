"""Object stores: the same data as on a disk, without a network, through a store in memory."""

import errno
import shutil
import socket
import sys
import uuid
from types import SimpleNamespace

import numpy as np
import obstore
import pytest

from can_jax.data.index.build import build_index
from can_jax.data.index.examine import Plan
from can_jax.data.pipeline import chunks
from can_jax.data.pipeline.training_loader import host_batches
from can_jax.data.sources.folder import open_folder
from can_jax.data.sources.registry import open_source
from can_jax.data.sources.shards import locate_shards, open_tfrecord, open_webdataset
from can_jax.data.storage import hugging_face, remote
from can_jax.data.storage.disk_cache import DiskCache
from can_jax.data.storage.find import find_shards
from can_jax.data.storage.mirror import mirrored, upload, work_folder
from can_jax.utils.errors import UserError
from tests.data.samples import encode, random_image, write_tfrecord, write_webdataset
from tests.helpers.configs import small_config

RNG = np.random.default_rng(0)
CONTENTS = [encode(random_image(RNG, 12, 14)) for _ in range(6)]


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Return a function that copies a folder into a new bucket, and returns its URL."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def copied(folder, bucket=tmp_path.name):
        for path in folder.rglob("*"):
            if path.is_file():
                inside = path.relative_to(folder)
                remote.write(f"memory://{bucket}/data/{inside}", path.read_bytes())
        return f"memory://{bucket}/data"

    return copied


def read_all(source):
    images, labels = source.read(np.arange(source.examples))
    return images, labels.tolist()


@pytest.mark.parametrize("kind", ["tfrecord", "webdataset"])
def test_shards_and_their_index_on_a_store(tmp_path, store, kind):
    suffix, write, opener = {
        "tfrecord": ("tfrecord", write_tfrecord, open_tfrecord),
        "webdataset": ("tar", write_webdataset, open_webdataset),
    }[kind]
    for i, part in enumerate((CONTENTS[:4], CONTENTS[4:])):
        write(tmp_path / "data" / f"x-train-{i}.{suffix}", part, [7] * len(part))
    root = store(tmp_path / "data")
    local = read_all(opener(str(tmp_path / "data"), "train"))
    for pattern in ("", f"/x-train-*.{suffix}", f"/x-train-{{0..1}}.{suffix}", "/**/x-*[01].*"):
        assert read_all(opener(root + pattern, "train")) == local
    names = locate_shards(kind, root, "train")[1]
    build_index(Plan(kind, root, "none"), names, tmp_path / "index")
    upload(tmp_path / "index", f"{root}/.can_jax_index/train", "index.json")
    opened = opener(root, "train")
    assert read_all(opened) == local and opened.table.digest is not None
    remote.write(f"{root}/x-train-0.{suffix}", b"another")
    with pytest.raises(UserError, match="whose size has changed"):
        opener(root, "train")


def test_folders_of_images_on_a_store(tmp_path, store):
    for i, content in enumerate(CONTENTS):
        path = tmp_path / "data" / ("train", "val")[i % 2] / f"class {i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "data" / "LICENSE").write_text("text")
    root = store(tmp_path / "data")
    for split in ("train", "val"):
        local, there = (open_folder(place, split) for place in (str(tmp_path / "data"), root))
        assert read_all(there) == read_all(local)
        assert there.label_names == local.label_names
    with pytest.raises(UserError, match="no folder .* for the split 'test'"):
        open_folder(root, "test")


def test_batches_from_a_store_and_its_cache_are_those_from_a_disk(tmp_path, store, monkeypatch):
    write_webdataset(tmp_path / "data" / "train-0.tar", [*CONTENTS, b"no image"])
    root = store(tmp_path / "data")

    def rows(path, **options):
        config = small_config()
        config.data.update({"source": "webdataset", "path": path, **options})
        source = open_source(config.data, "train")
        dataset = host_batches(config, source, (0, 5), np.arange(8))
        return list(chunks.elements(dataset)), source

    expected, _ = rows(str(tmp_path / "data"))
    cache = {"disk_cache": str(tmp_path / "kept"), "disk_cache_gb": 1.0}
    for options in ({}, cache, cache | {"cache_gb": 1.0}):
        got, source = rows(root, **options)
        for batch, other in zip(got, expected, strict=True):
            assert all(np.array_equal(batch[key], other[key]) for key in batch)
    monkeypatch.setattr(remote, "read_range", None)  # any use of it fails
    assert read_all(source)[0] == [*CONTENTS, b"no image"]
    monkeypatch.setattr(DiskCache, "get", None)  # the cache in memory holds the images as well
    assert read_all(source)[0] == [*CONTENTS, b"no image"]
    half = DiskCache(str(tmp_path), 500, 1000, "x")
    assert 40 < sum(half.path(i) is not None for i in range(100)) < 60


def test_ranges_at_the_end_of_an_object_and_missing_objects(store):
    remote.write("memory://ranges/x", b"0123456789")
    assert remote.read_range("memory://ranges/x", 8, 5) == b"89"
    assert remote.read_range("memory://ranges/x", 10, 5) == b""
    assert remote.read_range("memory://ranges/x", 3, -1) == b"3456789"
    with pytest.raises(ValueError, match="limit of 9"):
        remote.read_range("memory://ranges/x", 0, -1, most=9)
    with pytest.raises(FileNotFoundError):
        remote.size("memory://ranges/y")


def test_stores_that_cannot_be_read_are_one_line():
    for url, message in (
        ("ftp://host/{split}-*.tar", "ftp:// cannot be read; supported are gs://, s3://"),
        ("hf://user/name/x.tar", "give hf://datasets/USER/NAME/PATH"),
        ("https://host/x-*.tar", "does not list its files; give their names as a range"),
    ):
        with pytest.raises(UserError, match=message):
            find_shards(url, "train", "tar")


@pytest.mark.parametrize("url", ["gs://bucket/x", "https://host/x.tar", "hf://datasets/a/b/x.tar"])
def test_without_the_library_the_message_names_its_extra(monkeypatch, url):
    monkeypatch.setitem(sys.modules, "obstore", None)
    for request in (remote.size, remote.exists, lambda url: remote.read_range(url, 0, 9)):
        with pytest.raises(UserError, match=r"reading URLs requires obstore: .*can_jax\[remote\]"):
            request(url)


def test_a_mirror_follows_its_folder(tmp_path, store):
    url = "memory://mirror/index"
    remote.write(f"{url}/a.npy", b"one")
    first = mirrored(url)
    assert (first / "a.npy").read_bytes() == b"one" and mirrored(url) == first
    remote.write(f"{url}/a.npy", b"two")
    second = mirrored(url)
    assert (second / "a.npy").read_bytes() == b"two" and not first.exists()


def test_hosts_with_equal_process_ids_make_a_mirror_at_once(store, monkeypatch):
    url, copy = "memory://hosts/index", shutil.copyfileobj
    remote.write(f"{url}/a.npy", b"one")

    def after_another_host(source, target, length):
        monkeypatch.setattr(shutil, "copyfileobj", copy)
        with monkeypatch.context() as other:
            other.setattr(socket, "gethostname", lambda: "other")
            assert (mirrored(url) / "a.npy").read_bytes() == b"one"
        copy(source, target, length)

    monkeypatch.setattr(shutil, "copyfileobj", after_another_host)
    assert (mirrored(url) / "a.npy").read_bytes() == b"one"


def test_mirror_that_fails_leaves_nothing(store, monkeypatch):
    url = "memory://fails/index"
    remote.write(f"{url}/a.npy", b"one")

    def fail(source, target, length):
        raise OSError(errno.EACCES, "refused")

    monkeypatch.setattr(shutil, "copyfileobj", fail)
    with pytest.raises(UserError, match="refused"):
        mirrored(url)
    assert not list(work_folder(url, "mirrors").iterdir())


def test_versions_without_tags_are_times(monkeypatch):
    entry = {"path": "index/a.npy", "size": 3, "e_tag": None}

    def version(time):
        listing = {"objects": [entry | {"last_modified": time}], "common_prefixes": []}
        monkeypatch.setattr(obstore, "list_with_delimiter", lambda store, folder: listing)
        return remote.inside("memory://untagged/index")[1][0].version

    assert version("Monday") != version("Tuesday")


def test_answer_of_the_hub_that_is_no_listing_is_one_line(monkeypatch):
    page = SimpleNamespace(status=200, data=b"<html>Sign in</html>", headers={})
    monkeypatch.setattr(hugging_face, "_get", lambda page_url, url: page)
    with pytest.raises(UserError, match="hf://datasets/a/b/c cannot be listed: .*Expecting value"):
        remote.inside("hf://datasets/a/b/c")


def test_object_is_created_once():
    url = f"memory://{uuid.uuid4().hex}/record"
    remote.write(url, b"first", mode="create")
    with pytest.raises(FileExistsError, match="already exists"):
        remote.write(url, b"second", mode="create")
    assert remote.read_range(url, 0, -1) == b"first"
