import json

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from can_jax.utils.errors import UserError
from can_jax.weights.reading import read_arrays
from tests.weights.vits import save_raw, shards, vit


@pytest.mark.parametrize("kind", ["BF16", "F16", "F64"])
def test_every_type_of_floats_is_read(tmp_path, kind):
    dtype = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F64": np.float64}[kind]
    arrays, place = vit(), tmp_path / "a.safetensors"
    save_raw(place, arrays, dtype, kind)
    found = read_arrays(epath.Path(place))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == (np.float64 if kind == "F64" else np.float32)
        np.testing.assert_array_equal(found[name], array.astype(dtype).astype(np.float32))


def test_bfloat16_of_a_file_of_numpy_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([1.5, -3], ml_dtypes.bfloat16))
    found = read_arrays(epath.Path(tmp_path / "a.npz"))["a"]
    assert found.dtype == np.float32 and found.tolist() == [1.5, -3]


def test_eight_bit_floats_are_refused(tmp_path):
    save_raw(tmp_path / "a.safetensors", {"w": np.ones(4)}, ml_dtypes.float8_e4m3fn, "F8_E4M3")
    with pytest.raises(UserError, match="w has the type F8_E4M3, which is not supported"):
        read_arrays(epath.Path(tmp_path / "a.safetensors"))


def test_shards_are_read_together_and_one_alone_is_refused(tmp_path):
    arrays = vit()
    index = shards(tmp_path, arrays)
    found = read_arrays(index)
    assert found.keys() == arrays.keys()
    np.testing.assert_array_equal(found["norm.bias"], arrays["norm.bias"])
    with pytest.raises(UserError, match=r"00001-of-00002\.safetensors is one of 2 shards: use"):
        read_arrays(epath.Path(tmp_path / "model-00001-of-00002.safetensors"))


def test_array_in_two_shards_is_that_of_the_index(tmp_path):
    arrays = vit()
    index = shards(tmp_path, arrays)
    name = min(arrays)  # it is in the first shard
    second = tmp_path / "model-00002-of-00002.safetensors"
    save_file(load_file(second) | {name: np.full_like(arrays[name], 9)}, second)
    np.testing.assert_array_equal(read_arrays(index)[name], arrays[name])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda place, table: (place / "model-00002-of-00002.safetensors").unlink(), "names mod"),
        (lambda place, table: table["weight_map"].update(x="../secret.npz"), "in the same folder"),
        (lambda place, table: table["weight_map"].update(x="model-00001-of-00002.safetensors"),
         "names x, which is not in"),
        (lambda place, table: table.pop("weight_map"), "is not a valid index of shards"),
    ],
)  # fmt: skip
def test_incomplete_shards_are_refused(tmp_path, damage, message):
    index = shards(tmp_path, vit())
    table = json.loads(index.read_text())
    damage(tmp_path, table)
    index.write_text(json.dumps(table))
    with pytest.raises(UserError, match=message) as error:
        read_arrays(index)
    assert "\n" not in str(error.value)


def test_pointer_of_git_lfs_is_told(tmp_path):
    place = epath.Path(tmp_path / "model.safetensors")
    place.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(UserError, match="Git LFS pointer"):
        read_arrays(place)


def test_transposed_array_is_refused_and_not_rearranged():
    from can_jax.weights.torch_layout import from_torch

    shapes = {"norm": {"scale": np.zeros(24)}, "patch_embed": {"kernel": np.zeros((48, 24))}}
    like, arrays = {"encoder": shapes}, vit()
    assert from_torch(arrays, like)["encoder"]["patch_embed"]["kernel"].shape == (48, 24)
    name = r"patch_embed\.proj\.weight"
    for shape, message in {
        (24, 48): rf"^{name} has shape \(24, 48\)",
        (3, 24, 4, 4): rf"^the patches of {name} have 4 x 4 x 24 values",
        (24, 3, 2, 8): rf"^{name} has shape \(24, 3, 2, 8\)",
        (24, 4, 4, 3): rf"^{name} has shape \(24, 4, 4, 3\)",
    }.items():
        wrong = arrays | {"patch_embed.proj.weight": np.zeros(shape, np.float32)}
        with pytest.raises(UserError, match=message):
            from_torch(wrong, like)
    with pytest.raises(UserError, match=r"norm\.weight has the type int8"):
        from_torch(arrays | {"norm.weight": np.ones(24, np.int8)}, like)


def test_a_table_of_shards_that_names_no_files_is_refused(tmp_path):
    place = epath.Path(tmp_path / "model.safetensors.index.json")
    place.write_text('{"weight_map": {"a": 3}}')
    with pytest.raises(
        UserError, match="is not a valid index of shards: weight_map has a value that is not"
    ):
        read_arrays(place)


@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone.", "module.backbone.", "a.b.c."])
def test_encoder_inside_a_larger_model_is_found(tmp_path, prefix):
    arrays = vit()
    head = {f"{prefix.split('.')[0]}.head.weight": np.ones(3, np.float32)}
    save_file({prefix + k: v for k, v in arrays.items()} | head, tmp_path / "a.safetensors")
    found = read_arrays(epath.Path(tmp_path / "a.safetensors"))
    assert found.keys() == arrays.keys() | {"head.weight"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("base_encoder.", "momentum_encoder."), "several encoders: base_encoder., momentum_enc"),
        (("a.", "", "head"), None),
    ],
)
def test_several_encoders_are_refused(tmp_path, names, message):
    arrays = {name + k: v for name in names for k, v in vit(depth=1).items()}
    np.savez(tmp_path / "a.npz", **arrays)
    if message is None:  # The plain names win; the caller refuses the others by name.
        assert read_arrays(epath.Path(tmp_path / "a.npz")).keys() == arrays.keys()
        return
    with pytest.raises(UserError, match=message):
        read_arrays(epath.Path(tmp_path / "a.npz"))


def test_names_that_become_the_same_are_refused(tmp_path):
    arrays = {"a.b.patch_embed.proj.weight": np.ones(3), "a.b.x": np.ones(3), "a.x": np.ones(3)}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=r"the file holds x twice, once as a\.x"):
        read_arrays(epath.Path(tmp_path / "a.npz"))


def test_number_that_is_infinite_in_float32_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([1e300]))
    with pytest.raises(UserError, match="a holds NaN or infinity in float32"):
        read_arrays(epath.Path(tmp_path / "a.npz"))


def test_truncated_file_says_so(tmp_path):
    place = epath.Path(tmp_path / "a.safetensors")
    save_file(vit(), place)
    content = place.read_bytes()
    for length in (0, 4, 100, len(content) - 1):
        place.write_bytes(content[:length])
        with pytest.raises(UserError, match="is truncated or damaged: copy or download it"):
            read_arrays(place)
