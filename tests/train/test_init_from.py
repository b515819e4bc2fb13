import functools
import json

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import save_file

from can_jax.checkpoint.manager import Checkpointer
from can_jax.config.resolve import to_json
from can_jax.distributed.mesh import make_mesh
from can_jax.distributed.sharding_rules import path_name
from can_jax.models.variant import Variant
from can_jax.train.init_from import initial_weights
from can_jax.train.step import abstract_state, make_step
from can_jax.utils.errors import UserError
from can_jax.weights.layouts import to_huggingface
from can_jax.weights.torch_layout import to_torch
from tests.helpers.configs import small_config
from tests.train.states import random_state
from tests.weights.vits import vit


@functools.cache  # what a test changes is its own tree of arrays
def fresh(seed=0, **changes):
    config = small_config(model__patch_embed="linear", **changes)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    step = make_step(config, lambda _: 0.0)
    return config, random_state(abstract_state(step, mesh), seed), mesh


def flat(tree):
    return {path_name(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture
def another_run(tmp_path):
    """The run directory of another seed, with a decoder of another width."""
    config, state, _ = fresh(seed=7, model__decoder__width=32)
    checkpoints = Checkpointer(epath.Path(tmp_path / "run" / "checkpoints"), keep_last=1)
    checkpoints.save(5, state, {})
    checkpoints.close()
    (tmp_path / "run" / "config.json").write_text(to_json(config))
    return tmp_path / "run", flat(state.parameters)


def test_weights_of_a_run_are_taken_where_they_fit_and_the_rest_is_told(another_run):
    place, theirs = another_run
    config, state, mesh = fresh(seed=1)
    before = flat(state.parameters)
    same = {"mean": config.augment.mean, "std": config.augment.std}
    taken, lines = initial_weights(str(place), state.parameters, mesh, normalization=same)
    for name, array in flat(taken).items():
        wanted = theirs if theirs[name].shape == before[name].shape else before
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)
    assert "encoder/blocks/layers/mlp/expand/kernel" not in "".join(lines)
    missing, left = lines[1:]
    assert missing.startswith("  initialized randomly: ") and "decoder/embed/kernel" in missing
    assert left.startswith("  not used: ") and "decoder/embed/kernel" in left
    assert f"{len(before)} arrays" in lines[0]


def test_run_whose_encoder_has_another_depth_is_refused(another_run):
    _, state, mesh = fresh(seed=1, model__depth=3)
    with pytest.raises(
        UserError, match=r"arrays of the encoder that do not fit this model: .*, such as enc"
    ) as found:
        initial_weights(str(another_run[0]), state.parameters, mesh)
    assert str(found.value).endswith("set config.model to the architecture of the weights")


def test_settings_of_a_run_that_its_arrays_do_not_show_are_compared(another_run):
    _, state, mesh = fresh(seed=1)
    other = {"mean": [0.5] * 3, "std": [0.25] * 3}
    variant = Variant(gelu="tanh", epsilon=1e-5)
    _, lines = initial_weights(
        str(another_run[0]), state.parameters, mesh, variant, normalization=other
    )
    text = "\n".join(lines)
    assert "the GELU variant is exact in the weights and tanh in this run" in text
    assert "layer_norm_eps is 1e-06 in the weights and 1e-05 in this run" in text
    assert "but this run normalizes with mean [0.5, 0.5, 0.5], std [0.25, 0.25, 0.25]" in text


@pytest.mark.parametrize("prefix", ["", "param/"])
def test_weights_under_foreign_names_are_taken(tmp_path, prefix):
    plain = {"model__depth": 2, "model__projector__batch_norm": False}
    _, theirs, _ = fresh(seed=7, **plain)
    arrays = to_torch(theirs.parameters, 4)
    encoder = {k: v for k, v in arrays.items() if "decoder" not in k and k != "mask_token"}
    np.savez(tmp_path / "a.npz", **{prefix + k: v for k, v in encoder.items()}, **{"head.bias": 1})
    _, state, mesh = fresh(seed=1, **plain)
    taken, lines = initial_weights(str(tmp_path / "a.npz"), state.parameters, mesh)
    before, wanted = flat(state.parameters), flat(theirs.parameters)
    for name, array in flat(taken).items():
        source = before if name.startswith("decoder") else wanted
        np.testing.assert_array_equal(array, source[name], err_msg=name)
    assert "decoder/predict/bias" in lines[1] and "head.bias" in lines[2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda place: None, "does not exist"),
        (lambda place: place.write_bytes(b"PK nonsense"), "cannot be read"),
        (lambda place: np.savez(place, other=np.zeros(3)), "has no array that fits"),
        (lambda place: np.savez(place, a=np.array([{}], object)), "cannot be read"),
    ],
)
def test_source_that_is_none_is_one_line(tmp_path, make, message):
    make(tmp_path / "x.npz")
    _, state, mesh = fresh()
    with pytest.raises(UserError, match=message) as found:
        initial_weights(str(tmp_path / "x.npz"), state.parameters, mesh)
    assert "\n" not in str(found.value)


def test_patches_of_another_size_are_named():
    _, state, mesh = fresh(model__patch_size=8, model__width=96, model__depth=4)
    with pytest.raises(UserError, match="weight have 4 x 4 x 3 values, but those of this"):
        initial_weights("can-cifar10", state.parameters, mesh)


def test_run_directory_without_a_checkpoint_is_refused(tmp_path):
    config, state, mesh = fresh()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(UserError, match="holds no checkpoint"):
        initial_weights(str(tmp_path), state.parameters, mesh)
    (tmp_path / "classifier.json").write_text("{}")
    with pytest.raises(
        UserError, match="is a fine-tuned classifier; give the pretraining run instead"
    ):
        initial_weights(str(tmp_path), state.parameters, mesh)
    (tmp_path / "classifier.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"novel": 1}))
    with pytest.raises(UserError, match=r"config\.json cannot be read: config\.novel is not a key"):
        initial_weights(str(tmp_path), state.parameters, mesh)


@pytest.fixture(scope="module")
def ours():
    """The parameters of a run whose encoder is that of `vit()`, and their mesh."""
    _, state, mesh = fresh(model__depth=2, model__projector__batch_norm=False)
    return state.parameters, mesh


def test_folder_of_hugging_face_is_taken_and_its_normalization_told(ours, tmp_path):
    theirs = to_huggingface(vit(), with_decoder=False)
    save_file(
        {k: np.ascontiguousarray(v) for k, v in theirs.items()}, tmp_path / "model.safetensors"
    )
    config = {"model_type": "vit", "num_attention_heads": 3, "layer_norm_eps": 1e-12}
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    taken, lines = initial_weights(str(tmp_path), *ours)
    found = to_torch({"encoder": taken["encoder"]}, 4)
    for name, array in vit().items():
        if name != "pos_embed":
            np.testing.assert_array_equal(found[name], array, err_msg=name)
    text = "\n".join(lines)
    assert (
        "layer_norm_eps is 1e-12" in text and "images normalized with mean [0.5, 0.5, 0.5]" in text
    )
    for name, content, told in (
        ("preprocessor_config", processor | {"do_rescale": False}, "has do_rescale=false"),
        ("preprocessor_config", {"image_mean": 0.5}, "preprocessor_config.json has no image_std"),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        assert told in initial_weights(str(tmp_path), *ours)[1][-1]
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 6}))
    with pytest.raises(UserError, match="intermediate_size=6, but the arrays have 96"):
        initial_weights(str(tmp_path), *ours)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 6}))
    with pytest.raises(UserError, match="the weights have 6 heads, but config.model has 3"):
        initial_weights(str(tmp_path), *ours)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: vit() | {"blocks.1.ls2.gamma": np.ones(24)},
            "blocks.1.ls2.gamma has no counterpart",
        ),
        (lambda: vit() | {"reg_token": np.ones((1, 4, 24))}, "reg_token has no counterpart"),
        (
            lambda: vit(depth=3),
            "blocks.2.attn.proj.bias has no counterpart in this encoder, nor have 11",
        ),
        (lambda: vit(depth=1), r"the weights have no blocks\.1\."),
        (lambda: vit(patch=2), r"patch_embed\.proj\.weight have 2 x 2 x 3 values"),
        (
            lambda: vit() | {"pos_embed": vit()["pos_embed"] + 0.1},
            "learned positions require config",
        ),
        (lambda: vit() | {"pos_embed": 0 * vit()["pos_embed"]}, "pos_embed holds zeros"),
        (lambda: vit(width=32) | {"fc_norm.bias": np.ones(32)}, "has shape|no array that fits"),
    ],
)
def test_encoder_that_would_be_used_wrongly_is_refused(ours, tmp_path, make, message):
    np.savez(tmp_path / "a.npz", **make())
    with pytest.raises(UserError, match=message) as error:
        initial_weights(str(tmp_path / "a.npz"), *ours)
    assert "\n" not in str(error.value) and "a.npz" in str(error.value)


def test_positions_that_are_not_there_are_told(ours, tmp_path):
    np.savez(tmp_path / "a.npz", **{k: v for k, v in vit().items() if k != "pos_embed"})
    _, lines = initial_weights(str(tmp_path / "a.npz"), *ours)
    assert "the file has no pos_embed" in lines[-1]
