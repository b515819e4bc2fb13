"""Archives of arrays that state more than they hold, or more than a machine has."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from etils import epath

from can_jax.checkpoint.failed_step import read_batch
from can_jax.data.sources.arrays import open_arrays
from can_jax.selfcheck import compare as selfcheck
from can_jax.utils import archives
from can_jax.utils.archives import map_npy, read_npz
from can_jax.utils.errors import UserError
from can_jax.weights.reading import read_arrays

LIMIT = 2**20


def npy(shape, content=b"", dtype="|u1"):
    """An npy file that states a shape."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-len(header) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + content


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


@pytest.fixture
def bomb(monkeypatch):
    """A small archive of zeros, a hundred times the limit."""
    monkeypatch.setattr(archives, "FLOOR", LIMIT)
    size = 128 * LIMIT
    return zipped(images=npy((size,), bytes(size)))


def test_archive_that_expands_too_much_is_refused_unread(bomb, tmp_path):
    place = tmp_path / "train-0.npz"
    place.write_bytes(bomb)
    (tmp_path / "batch_0.npz").write_bytes(bomb)
    readers = (
        lambda: read_npz(place), lambda: read_arrays(epath.Path(place)),
        lambda: open_arrays(str(tmp_path), "train", 3), lambda: selfcheck.read(str(place)),
        lambda: read_batch(epath.Path(tmp_path)),
    )  # fmt: skip
    tracemalloc.start()
    for reader in readers:
        with pytest.raises(UserError, match="is too much for a file of") as error:
            reader()
        assert "\n" not in str(error.value)
    assert tracemalloc.get_traced_memory()[1] < 4 * LIMIT
    tracemalloc.stop()


def test_many_members_count_together(monkeypatch):
    monkeypatch.setattr(archives, "FLOOR", LIMIT)
    part = npy((LIMIT // 4,), bytes(LIMIT // 4))
    assert len(read_npz(zipped(a=part, b=part))) == 2
    with pytest.raises(UserError, match="is too much"):
        read_npz(zipped(**{f"a{i}": part for i in range(5)}))


def test_no_archive_may_exceed_the_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(archives, "memory", lambda: LIMIT)
    np.savez(tmp_path / "a.npz", a=np.zeros(2 * LIMIT, np.uint8))
    with pytest.raises(UserError, match="is too much"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy((2**40,), b"abc"), "array 'a' should hold 1099511627776 bytes, but holds 3"),
        (npy((2**62, 2**62), b"abc"), "should hold .* bytes, but holds 3"),
        (npy((2,), b"abc"), "should hold 2 bytes, but holds 3"),
        (npy((-3,), b"abc"), "negative dimension"),
        (npy((3,), b"abc", "|O"), "Python objects"),
        (b"no array", "array 'a': the magic string is not correct"),
    ],
)
def test_array_that_states_another_size_is_refused(content, message):
    with pytest.raises(UserError, match=message):
        read_npz(zipped(a=content))


def test_other_compressions_are_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.npy", npy((3,), b"abc"))
    with pytest.raises(UserError, match="zip's method 12; only stored and deflated"):
        read_npz(buffer.getvalue())


def test_arrays_of_every_kind_come_back(tmp_path):
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.array("text"), "c": np.zeros((0, 3))}
    arrays["d"] = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        for name, array in read_npz(tmp_path / "a.npz").items():
            np.testing.assert_array_equal(array, arrays[name])


def test_column_that_is_shorter_than_it_states_is_refused(tmp_path):
    for name, content in {"short": npy((100,), b"abc"), "cut": b"\x93NUMPY\1\0\xff"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="not an npy file"):
            map_npy(tmp_path / name)
