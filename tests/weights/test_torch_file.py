import io
import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
from etils import epath

from can_jax.errors import UserError
from can_jax.weights.reading import read_arrays
from can_jax.weights.torch_file import read_torch


class Storage:
    def __init__(self, kind, array):
        self.kind, self.array = kind, array


class Tensor:
    """What PyTorch's pickles say of a tensor."""

    def __init__(self, storage, offset, size, stride):
        self.arguments = (storage, offset, size, stride, False, {})

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


@pytest.fixture
def save(monkeypatch):
    """Saves a tree as `torch.save` does, storages being NumPy arrays; PyTorch is not there."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "HalfStorage", "LongStorage", "BFloat16Storage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    exec("def _rebuild_tensor_v2(*_): pass", utils.__dict__)
    utils._rebuild_tensor_v2.__module__ = "torch._utils"
    torch._utils = utils
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    kinds = {"f": "FloatStorage", "e": "HalfStorage", "q": "LongStorage", "l": "LongStorage"}

    def describe(value):
        if isinstance(value, dict):
            return {key: describe(item) for key, item in value.items()}
        if not isinstance(value, np.ndarray):
            return value
        strides = tuple(step // value.itemsize for step in value.strides)
        kind = getattr(torch, kinds[value.dtype.char])
        return Tensor(Storage(kind, value), 0, value.shape, strides)

    def save(tree):
        storages, buffer = {}, io.BytesIO()

        class Pickler(pickle.Pickler):
            def persistent_id(self, thing):
                if not isinstance(thing, Storage):
                    return None
                key = str(len(storages))
                storages[key] = thing.array.tobytes("A")
                return ("storage", thing.kind, key, "cpu", thing.array.size)

        Pickler(buffer, 2).dump(describe(tree))
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("weights/data.pkl", buffer.getvalue())
            for key, content in storages.items():
                file.writestr(f"weights/data/{key}", content)
        return archive.getvalue()

    return save


ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "half": np.array([1.5, -2], np.float16),
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("under", [(), ("model",), ("state_dict",), ("model", "state_dict")])
def test_arrays_come_back(save, under):
    tree = dict(ARRAYS)
    for name in reversed(under):
        tree = {name: tree, "epoch": 3}
    found = read_torch(save(tree))
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype and found[name].shape == array.shape


def test_names_of_a_distributed_run_and_its_command_line(save):
    import argparse

    tree = {"model": {"module.a": ARRAYS["half"]}, "args": argparse.Namespace(lr=1)}
    assert list(read_torch(save(tree))) == ["a"]


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda mark: Evil(os.system, f"touch {mark}"), "system"),
        (lambda mark: Evil(eval, f"open({str(mark)!r}, 'w')"), "eval"),
        (lambda mark: Evil(exec, f"open({str(mark)!r}, 'w')"), "exec"),
        (lambda mark: Evil(getattr, "a", "upper"), "getattr"),
    ],
)
def test_file_that_wants_to_run_something_is_one_line_and_does_nothing(save, tmp_path, make, named):
    mark, place = tmp_path / "mark", tmp_path / "evil.pth"
    place.write_bytes(save({"model": {"a": ARRAYS["half"]}, "extra": make(mark)}))
    with pytest.raises(UserError, match=f"{named}, which is no tensor; nothing") as error:
        read_arrays(epath.Path(place))
    assert "\n" not in str(error.value) and str(place) in str(error.value)
    assert not mark.exists()


def test_tensor_beyond_its_storage_is_refused(save):
    for offset, size, stride in ((9, (4,), (1,)), (0, (3, 4), (5, 1)), (-1, (2,), (1,))):
        storage = Storage(sys.modules["torch"].FloatStorage, ARRAYS["a.weight"])
        with pytest.raises(ValueError, match="beyond its storage"):
            read_torch(save({"a": Tensor(storage, offset, size, stride)}))


@pytest.mark.parametrize(
    "damage", [lambda b: b[:200], lambda b: b"\x80\x02}q\x00.", lambda b: b"", lambda b: b[:-60]]
)
def test_file_that_is_none_is_one_line(save, tmp_path, damage):
    place = epath.Path(tmp_path / "a.pth")
    place.write_bytes(damage(save(ARRAYS)))
    with pytest.raises(UserError) as error:
        read_arrays(place)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_are_refused(save, tmp_path):
    place = epath.Path(tmp_path / "a.pth")
    place.write_bytes(save(ARRAYS | {"a.weight": np.array([1, np.nan], np.float32)}))
    with pytest.raises(UserError, match="a.weight holds NaN or infinity"):
        read_arrays(place)


def test_files_that_torch_itself_wrote(tmp_path):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 4)
    tree = {"model": layer.state_dict() | {"b": torch.ones(3, dtype=torch.bfloat16)}, "epoch": 1}
    torch.save(tree, tmp_path / "a.pth")
    found = read_arrays(epath.Path(tmp_path / "a.pth"))
    np.testing.assert_array_equal(found["weight"], layer.weight.detach().numpy())
    assert found["b"].astype(np.float32).sum() == 3
