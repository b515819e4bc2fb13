import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from can_jax.checkpoint import Checkpointer
from can_jax.errors import UserError
from can_jax.parallel.mesh import make_mesh
from can_jax.step import abstract_state, initialize, make_step
from tests.conftest import small_config


def fresh(devices=8, **changes):
    config = small_config(model__width=32, model__heads=4, **changes)
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    step = make_step(config, lambda _: 0.0)
    return initialize(step, mesh), abstract_state(step, mesh)


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_state_comes_back_on_another_mesh(tmp_path):
    state, _ = fresh(mesh__data=2, mesh__fsdp=4)
    checkpoints = Checkpointer(epath.Path(tmp_path), keep_last=2)
    checkpoints.save(5, state, {"seconds": 1.5})
    checkpoints.wait()
    _, abstract = fresh(devices=2, seed=1)
    restored, run = checkpoints.restore(5, abstract)
    assert run == {"seconds": 1.5}
    assert_equal(state, restored)
    assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(restored)} == {2}
    checkpoints.close()


def test_newest_are_kept_and_some_for_ever(tmp_path):
    state, _ = fresh(devices=1)
    checkpoints = Checkpointer(epath.Path(tmp_path), keep_last=2, keep_every_steps=4)
    for step in range(1, 8):
        checkpoints.save(step, state, {})
        checkpoints.wait()
    checkpoints.close()
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [4, 6, 7]


def test_half_written_checkpoint_does_not_count(tmp_path):
    state, _ = fresh(devices=1)
    checkpoints = Checkpointer(epath.Path(tmp_path), keep_last=3)
    checkpoints.save(1, state, {})
    checkpoints.close()
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    assert Checkpointer(epath.Path(tmp_path), keep_last=3).latest_step == 1


@pytest.mark.parametrize("changes", [{"model__width": 40}, {"model__depth": 2}])
def test_checkpoint_of_another_model_is_refused(tmp_path, changes):
    state, _ = fresh(devices=1)
    checkpoints = Checkpointer(epath.Path(tmp_path), keep_last=1)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    config = small_config(**{"model__width": 32, "model__heads": 4} | changes)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    abstract = abstract_state(make_step(config, lambda _: 0.0), mesh)
    with pytest.raises(UserError, match="checkpoint .*1 ") as caught:
        checkpoints.restore(1, abstract)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_damaged_checkpoint_is_refused(tmp_path):
    state, abstract = fresh(devices=1)
    checkpoints = Checkpointer(epath.Path(tmp_path), keep_last=1)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    for path in (tmp_path / "1" / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        checkpoints.restore(1, abstract)


def test_saving_a_step_twice_is_harmless(tmp_path):
    state, _ = fresh(devices=1)
    checkpoints = Checkpointer(epath.Path(tmp_path), keep_last=1)
    checkpoints.save(1, state, {"n": 1})
    checkpoints.wait()
    checkpoints.save(1, jax.tree.map(jnp.zeros_like, state), {"n": 2})
    checkpoints.close()
    assert Checkpointer(epath.Path(tmp_path), keep_last=1).latest_step == 1
