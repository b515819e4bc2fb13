import os
import pickle
import sys

import numpy as np
import pytest
from etils import epath

from can_jax.utils.errors import UserError
from can_jax.weights.reading import read_arrays
from can_jax.weights.torch_file import read_torch
from tests.torture.readers import torch_file
from tests.weights.torch_files import Storage, Tensor

ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "half": np.array([1.5, -2], np.float16),
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize(
    "under", [(), ("model",), ("state_dict",), ("model", "state_dict"), ("teacher",), ("a", "ema")]
)
def test_arrays_come_back(save_torch, under):
    tree = dict(ARRAYS)
    for name in reversed(under):
        tree = {name: tree, "epoch": 3}
    found, notes = read_torch(save_torch(tree))
    assert found.keys() == ARRAYS.keys() and not notes
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype and found[name].shape == array.shape


def test_names_of_a_distributed_run_and_its_command_line(save_torch):
    import argparse

    for name in ("module.a", "_orig_mod.module.a", "a"):
        tree = {"model": {name: ARRAYS["half"]}, "args": argparse.Namespace(lr=1)}
        assert list(read_torch(save_torch(tree))[0]) == ["a"]
    with pytest.raises(UserError, match=r"the file holds a twice, once as module\.a"):
        read_torch(save_torch({"a": ARRAYS["half"], "module.a": ARRAYS["half"]}))


# What codes save beside the weights: counters, an optimizer's moments, the state of a loss.
REST = {
    "epoch": 3, "lr_scheduler": {"last_epoch": 3}, "dino_loss": {"center": ARRAYS["half"]},
    "optimizer": {"state": {0: {"exp_avg": ARRAYS["a.weight"]}}, "param_groups": []},
}  # fmt: skip


def other():
    return {name: np.asarray(array + 1) for name, array in ARRAYS.items()}


@pytest.mark.parametrize(
    ("used", "others"),
    [
        ("model", ("model_ema",)),  # DeiT and torchvision
        ("state_dict", ("state_dict_ema",)),  # timm
        ("module", ("ema",)),
        ("model", ("teacher", "student")),
    ],
)
def test_weights_beside_the_usual_ones_are_named(save_torch, used, others):
    found, notes = read_torch(save_torch(REST | dict.fromkeys(others, other()) | {used: ARRAYS}))
    np.testing.assert_array_equal(found["half"], ARRAYS["half"])
    (note,) = notes
    names = ", ".join(map(repr, others))
    assert f"the weights '{used}' are used, but not {names}; to use" in note
    assert f"torch.save(torch.load(file)['{others[0]}'], other_file)" in note


@pytest.mark.parametrize(
    "names", [("student", "teacher"), ("encoder", "target_encoder"), ("model", "state_dict")]
)
def test_file_of_several_models_is_refused(save_torch, names):
    message = f"several models: {', '.join(names)}; save one of them in another file: torch.save"
    for tree in (dict.fromkeys(names, ARRAYS), {"model": dict.fromkeys(names, ARRAYS)}):
        with pytest.raises(UserError, match=message):
            read_torch(save_torch(REST | tree))


def test_file_without_a_model_is_refused(save_torch):
    with pytest.raises(
        UserError, match="no named arrays; its first keys are epoch, lr_scheduler, dino"
    ):
        read_torch(save_torch(REST))


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
def test_file_that_runs_something_is_one_line_and_does_nothing(save_torch, tmp_path, make, named):
    mark, place = tmp_path / "mark", tmp_path / "evil.pth"
    place.write_bytes(save_torch({"model": {"a": ARRAYS["half"]}, "extra": make(mark)}))
    with pytest.raises(UserError, match=f"{named}, which is not a tensor; no code") as error:
        read_arrays(epath.Path(place))
    assert "\n" not in str(error.value) and str(place) in str(error.value)
    assert not mark.exists()


def test_tensor_beyond_its_storage_is_refused(save_torch):
    for offset, size, stride in ((9, (4,), (1,)), (0, (3, 4), (5, 1)), (-1, (2,), (1,))):
        storage = Storage(sys.modules["torch"].FloatStorage, ARRAYS["a.weight"])
        with pytest.raises(ValueError, match="beyond its storage"):
            read_torch(save_torch({"a": Tensor(storage, offset, size, stride)}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:200], "the end of the file is missing: copy or download it again"),
        (lambda b: b"\x80\x02}q\x00.", "is not an archive of PyTorch 1.6 or later"),
        (lambda b: b"", "the file is empty: copy or download it again"),
        (lambda b: b[:-60], "cannot be read"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".BIN"])
def test_file_that_is_none_is_one_line(save_torch, tmp_path, damage, message, suffix):
    place = epath.Path(tmp_path / f"a{suffix}")
    place.write_bytes(damage(save_torch(ARRAYS)))
    with pytest.raises(UserError, match=message) as error:
        read_arrays(place)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_are_refused(save_torch, tmp_path):
    place = epath.Path(tmp_path / "a.pth")
    place.write_bytes(save_torch(ARRAYS | {"a.weight": np.array([1, np.nan], np.float32)}))
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


def test_nested_arrays_are_named_by_their_path(save_torch):
    array = np.ones(3, np.float32)
    found, _ = read_torch(save_torch({"norm.weight": array, "extra": {"ls1": {"gamma": array}}}))
    assert sorted(found) == ["extra.ls1.gamma", "norm.weight"]


def described(storage, offset=0, size=(2,), stride=(1,)):
    return {"a": Tensor(storage, offset, size, stride)}


def storage_of(count=4):
    return Storage(sys.modules["torch"].FloatStorage, np.ones(count, np.float32))


class Called:
    """Pickles as a call of something that PyTorch's pickles name."""

    def __init__(self, name, *arguments):
        self.call = getattr(sys.modules["torch"], name), arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", ["offset", "size", "stride"])
@pytest.mark.parametrize("number", [1.0, True, "1", None])
def test_numbers_of_a_tensor_are_plain(save_torch, place, number):
    value = number if place == "offset" else (number,)
    with pytest.raises(ValueError, match="are not integers"):
        _read(save_torch, described(storage_of(), **{place: value}))


def _read(save_torch, tree):
    return read_torch(save_torch(tree))


def test_integers_too_large_for_numpy_are_beyond_the_storage(save_torch):
    for changes in ({"stride": (2**62,)}, {"size": (2**63,)}, {"offset": 2**64}):
        with pytest.raises(ValueError, match="beyond its storage"):
            _read(save_torch, described(storage_of(), **changes))


def test_types_of_storages_cannot_be_called(save_torch):
    with pytest.raises(TypeError, match="not callable"):
        _read(save_torch, described(storage_of(), size=(Called("LongStorage", 3),)))


def test_tensor_without_strides_takes_no_memory(save_torch):
    with pytest.raises(UserError, match="is too much for a file of"):
        _read(save_torch, described(storage_of(), size=(2**20, 2**20), stride=(0, 0)))
    found, _ = _read(save_torch, described(storage_of(), size=(3, 2), stride=(0, 1)))
    assert found["a"].tolist() == [[1, 1]] * 3


def test_many_small_pieces_do_not_add_up_without_a_bound(save_torch):
    storage = storage_of()
    tree = {f"a{i}": Tensor(storage, 0, (2**12, 2**12), (0, 0)) for i in range(8)}
    with pytest.raises(UserError, match="is too much for a file of"):
        _read(save_torch, tree)


@pytest.mark.parametrize("circle", [True, False])
def test_dicts_that_hold_each_other_end(save_torch, circle):
    inner = {}
    tree = inner
    for _ in range(60):
        tree = {"x": tree, "y": tree}
    if circle:
        inner["z"] = tree
    with pytest.raises(ValueError, match="nested dicts are too deep or too large"):
        read_torch(torch_file({"a": np.ones(3, np.float32)}, pickle.dumps(tree)))


def test_pickle_that_reserves_memory_is_refused():
    with pytest.raises(ValueError, match="memo index 4294967295"):
        read_torch(torch_file({}, b"\x80\x02}r\xff\xff\xff\xff."))


def test_pickle_may_not_change_what_the_next_file_is_read_by(save_torch):
    arrays = {"a": np.ones(3, np.float32)}
    evil = b"\x80\x02cargparse\nNamespace\nN}X\5\0\0\0stateK\1s\x86b0}."
    with pytest.raises(UserError):  # without arrays
        read_torch(torch_file({}, evil))
    assert read_torch(torch_file(arrays))[0]["a"].tolist() == [1, 1, 1]
