import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from can_jax.distributed import sharding_rules
from can_jax.distributed.mesh import make_mesh
from can_jax.distributed.sharding_rules import (
    RULES,
    path_name,
    rule_of,
    shardings,
    splits_state,
)
from can_jax.optimizers.weight_decay import decay_mask
from can_jax.train.step import abstract_state, make_step
from tests.helpers.configs import small_config


def abstract(**changes):
    """The shapes and shardings of a state on eight devices."""
    config = small_config(model__depth=2, model__width=32, model__heads=4, **changes)
    return abstract_state(make_step(config, lambda _: 0.0), make_mesh(config.mesh))


def test_every_parameter_is_covered_and_only_matrices_decay():
    decays = jax.tree_util.tree_leaves_with_path(decay_mask(abstract().parameters))
    assert {decay for _, decay in decays} == {True, False}
    for path, decay in decays:
        assert decay == path_name(path).endswith("kernel")


def test_no_parameter_of_can_relies_on_the_rules_for_others():
    state = abstract()
    for path, leaf in jax.tree_util.tree_leaves_with_path((state.parameters, state.batch_stats)):
        assert rule_of(path_name(path[1:]), leaf.ndim) in RULES


def test_rule_matches_the_end_of_a_path_only():
    for name in ("encoder/positions/conv/kernel", "encoder/class_token_mlp/kernel"):
        assert rule_of(name, 2).decay
    assert not rule_of("encoder/positions", 2).decay and not rule_of("decoder/mask_token", 2).decay


def test_other_parameters_are_split_and_decay_if_they_are_matrices():
    own = {"gate": jnp.zeros((16, 3)), "offset": jnp.zeros(16), "temperature": jnp.zeros(())}
    mesh = make_mesh(small_config(mesh__data=1, mesh__fsdp=8).mesh)
    assert decay_mask(own) == {"gate": True, "offset": False, "temperature": False}
    split = {name: place.spec for name, place in shardings(own, mesh).items()}
    assert split["gate"] == P("fsdp") and split["offset"] == split["temperature"] == P()


def test_parameters_and_optimizer_state_lie_in_the_same_shards():
    state = abstract(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    blocks = state.parameters["encoder"]["blocks"]["layers"]
    qkv = blocks["attention"]["qkv"]["kernel"]
    assert qkv.shape == (2, 32, 3, 4, 8)
    assert qkv.sharding.shard_shape(qkv.shape) == (2, 16, 3, 2, 8)
    expand = blocks["mlp"]["expand"]["kernel"]
    assert expand.sharding.shard_shape(expand.shape) == (2, 16, 64)
    places = {
        path_name(p): x.sharding for p, x in jax.tree_util.tree_leaves_with_path(state.parameters)
    }
    moments = jax.tree_util.tree_leaves_with_path(state.optimizer)
    assert len(moments) > 2 * len(places)
    for path, leaf in moments:
        name = path_name(path)
        own = [place for parameter, place in places.items() if name.endswith(parameter)]
        assert leaf.ndim == 0 or leaf.sharding in own


def test_axis_that_does_not_divide_is_left_whole():
    mesh = make_mesh(small_config(mesh__data=1, mesh__fsdp=8).mesh)
    tree = {"patch_embed": {"kernel": jax.ShapeDtypeStruct((12, 8), jnp.float32)}}
    place = shardings(tree, mesh)["patch_embed"]["kernel"]
    assert place.shard_shape((12, 8)) == (12, 8)


def test_stored_state_is_split_over_data_too():
    state = abstract(mesh__data=4, mesh__fsdp=2, mesh__shard_state=True)
    kernel = state.parameters["encoder"]["blocks"]["layers"]["mlp"]["expand"]["kernel"]
    assert kernel.sharding.spec == P(None, ("fsdp", "data"), "tensor")
    matrices = [x for x in jax.tree.leaves((state.parameters, state.optimizer)) if x.ndim > 1]
    split = [x for x in matrices if "data" in str(x.sharding.spec)]
    assert sum(x.size for x in split) > 0.9 * sum(x.size for x in matrices)


def test_axis_is_split_over_as_many_mesh_axes_as_divide_it():
    mesh = make_mesh(small_config(mesh__data=4, mesh__fsdp=2).mesh)
    for size, spec in ((16, ("fsdp", "data")), (6, "fsdp"), (9, None)):
        tree = {"patch_embed": {"kernel": jax.ShapeDtypeStruct((size, 8), jnp.float32)}}
        assert shardings(tree, mesh, over_data=True)["patch_embed"]["kernel"].spec == P(spec)


@pytest.mark.parametrize("setting", ["auto", True, False])
def test_state_is_split_by_default_on_accelerators_only(setting, monkeypatch):
    config = small_config(mesh__shard_state=setting)
    for name in ("cpu", "tpu"):
        monkeypatch.setattr(sharding_rules, "platform", lambda name=name: name)
        assert splits_state(config) is (name == "tpu" if setting == "auto" else setting)
