import json

import jax
import numpy as np
import pytest
from etils import epath

from can_jax.checkpoint import Checkpointer
from can_jax.config import to_json
from can_jax.errors import UserError
from can_jax.initial import initial_weights
from can_jax.parallel.mesh import make_mesh
from can_jax.parallel.rules import path_name
from can_jax.step import abstract_state, initialize, make_step
from can_jax.weights.torch_layout import to_torch
from tests.conftest import small_config


def fresh(**changes):
    config = small_config(**changes)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    step = make_step(config, lambda _: 0.0)
    return config, initialize(step, abstract_state(step, mesh)), mesh


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
    _, state, mesh = fresh(seed=1)
    before = flat(state.parameters)
    taken, lines = initial_weights(str(place), state.parameters, mesh)
    for name, array in flat(taken).items():
        wanted = theirs if theirs[name].shape == before[name].shape else before
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)
    assert "encoder/blocks/layers/mlp/expand/kernel" not in "".join(lines)
    missing, left = lines[1:]
    assert missing.startswith("  as initialised: ") and "decoder/embed/kernel" in missing
    assert left.startswith("  not used: ") and "decoder/embed/kernel" in left
    assert f"{len(before)} arrays" in lines[0]


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
        (lambda place: np.savez(place, other=np.zeros(3)), "has nothing that fits"),
        (lambda place: np.savez(place, a=np.array([{}], object)), "cannot be read"),
    ],
)
def test_source_that_is_none_is_one_line(tmp_path, make, message):
    make(tmp_path / "x.npz")
    _, state, mesh = fresh()
    with pytest.raises(UserError, match=message) as found:
        initial_weights(str(tmp_path / "x.npz"), state.parameters, mesh)
    assert "\n" not in str(found.value)


def test_run_directory_without_a_checkpoint_is_refused(tmp_path):
    config, state, mesh = fresh()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(UserError, match="holds no checkpoint"):
        initial_weights(str(tmp_path), state.parameters, mesh)
