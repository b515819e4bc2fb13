"""Files as `torch.save` writes them, without PyTorch."""

import io
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from can_jax.weights.torch_file import TYPES


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
def save_torch(monkeypatch):
    """Saves a tree as `torch.save` does, storages being NumPy arrays; PyTorch is not there."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in TYPES:
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    exec("def _rebuild_tensor_v2(*_): pass", utils.__dict__)
    utils._rebuild_tensor_v2.__module__ = "torch._utils"
    torch._utils = utils
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    kinds = {np.dtype(dtype): name for name, dtype in TYPES.items()}

    def describe(value):
        if isinstance(value, dict):
            return {key: describe(item) for key, item in value.items()}
        if not isinstance(value, np.ndarray):
            return value
        strides = tuple(step // value.itemsize for step in value.strides)
        kind = getattr(torch, kinds[value.dtype])
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
