"""Reads that fail: for a moment, or for good."""

import collections
import contextlib
import errno
import os

import jax
import numpy as np
import pytest

from can_jax.data.index.build import build_index
from can_jax.data.index.examine import Plan
from can_jax.data.pipeline.loader import open_loader
from can_jax.data.pipeline.streaming_loader import open_stream
from can_jax.data.sources.registry import open_source
from can_jax.data.storage import reading
from can_jax.data.storage.files import find_images
from can_jax.data.storage.reading import open_file, open_random
from can_jax.distributed.mesh import make_mesh
from can_jax.utils.errors import UserError
from tests.data.samples import encode, write_tfrecord, write_webdataset
from tests.helpers.configs import small_config

RNG = np.random.default_rng(0)
IMAGES = [encode(RNG.integers(0, 256, (18, 20, 3), dtype=np.uint8)) for _ in range(16)]


@pytest.fixture
def failing(monkeypatch):
    """Let the first reads of each file fail, as many as told."""
    monkeypatch.setattr(reading, "WAITS", (0.01, 0.01))
    real, real_into = os.pread, os.preadv

    @contextlib.contextmanager
    def fail(times, number=errno.EIO):
        calls = collections.Counter()

        def count(descriptor):
            name = os.readlink(f"/proc/self/fd/{descriptor}")
            calls[name] += 1
            if calls[name] <= times:
                raise OSError(number, os.strerror(number))

        def pread(descriptor, length, offset):
            count(descriptor)
            return real(descriptor, length, offset)

        def preadv(descriptor, buffers, offset):
            count(descriptor)
            return real_into(descriptor, buffers, offset)

        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", pread)
            patch.setattr(os, "preadv", preadv)
            yield

    return fail


def put_folder(place):
    for number, image in enumerate(IMAGES):
        (place / f"{number:02d}.png").write_bytes(image)
    return {"source": "folder"}


def put_tars(place):
    write_webdataset(place / "train-0.tar", IMAGES)
    return {"source": "webdataset"}


def put_streamed_records(place):
    write_tfrecord(place / "train-0.tfrecord", IMAGES)
    return {"source": "tfrecord", "streaming": True, "examples": len(IMAGES), "window": 4}


def put_streamed_tars(place):
    return put_tars(place) | {"streaming": True, "examples": len(IMAGES), "window": 4}


@pytest.mark.parametrize(
    "put",
    [
        put_folder,
        put_tars,
        put_streamed_records,
        put_streamed_tars,
    ],
)
def test_stream_is_the_same_after_a_failure_that_passes_and_ends_at_one_that_stays(
    put, tmp_path, failing
):
    config = small_config()
    config.data.update(path=str(tmp_path), **put(tmp_path))
    opened = open_stream if config.data.streaming else open_source
    source = opened(config.data, "train")

    def batches():
        loader = open_loader(config, source, make_mesh(config.mesh), 0, 3)
        return [jax.device_get(batch) for batch in loader]

    undisturbed = batches()
    with failing(2):
        again = opened(config.data, "train") if config.data.streaming else source
        source = again
        for one, other in zip(undisturbed, batches(), strict=True):
            jax.tree.map(np.testing.assert_array_equal, one, other)
    if not config.data.streaming:
        source = opened(config.data, "train")
    with (
        failing(10**6),
        pytest.raises(UserError, match=r"(png|tar|tfrecord).*cannot be read: Input/"),
    ):
        batches()


def test_stream_that_fails_within_a_batch_ends_with_the_file(tmp_path, failing):
    """tf.data takes the error for the end, and gives a batch of the rows before it."""
    for number in range(2):
        write_webdataset(tmp_path / f"train-{number}.tar", IMAGES[:10], first=10 * number)
    config = small_config()
    shown = {"source": "webdataset", "streaming": True, "examples": 20, "window": 4}
    config.data.update(path=str(tmp_path), **shown)
    source = open_stream(config.data, "train")
    loader = open_loader(config, source, make_mesh(config.mesh), 0, 6)
    order = np.random.default_rng([config.seed, 0]).permutation(2)
    (tmp_path / f"train-{order[1]}.tar").unlink()
    with pytest.raises(UserError, match=r"train-\d\.tar cannot be read: No such file"):
        list(loader)


def test_indexing_stops_where_the_storage_fails(tmp_path, failing):
    put_folder(tmp_path)
    names = find_images(str(tmp_path))[0]
    with failing(10**6), pytest.raises(UserError, match=r"00\.png cannot be read: Input/output"):
        build_index(Plan("folder", str(tmp_path)), names, tmp_path / "index")


def test_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    put_folder(tmp_path)
    monkeypatch.setattr(reading, "WAITS", (0.01,))

    def fail(path):
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(UserError, match="cannot be read: Input/output error"):
        find_images(str(tmp_path))


def test_tar_that_was_cut_since_it_was_opened_is_an_error(tmp_path):
    put_tars(tmp_path)
    config = small_config()
    config.data.update(path=str(tmp_path), source="webdataset")
    source = open_source(config.data, "train")
    os.truncate(tmp_path / "train-0.tar", 3000)
    with pytest.raises(
        UserError, match=r"train-0\.tar, at byte \d+ cannot be read: the file is shorter"
    ):
        source.read_block(np.arange(16))


def test_file_with_a_new_handle_is_opened_again(tmp_path, failing):
    (tmp_path / "a").write_bytes(b"0123456789")
    file = open_random(str(tmp_path / "a"))
    with failing(10**6, errno.ESTALE):
        assert file.read(2, 5) == b"23456"


def test_short_reads_are_completed(tmp_path, monkeypatch):
    content = bytes(range(256)) * 20
    (tmp_path / "a").write_bytes(content)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda file, length, at: real(file, min(length, 7), at))
    assert open_random(str(tmp_path / "a")).read(3, 5000) == content[3:5003]
    with open_file(str(tmp_path / "a")) as file:
        assert file.read(10) == content[:10]
        file.seek(-5, os.SEEK_END)
        assert file.read() == content[-5:] and file.tell() == len(content)
