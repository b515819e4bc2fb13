import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from can_jax.distributed.mesh import (
    batch_shards,
    constrain_batch_sharding,
    make_mesh,
    mesh_shape,
    slice_shape,
)
from can_jax.utils.errors import UserError


def axes(data=-1, fsdp=1, tensor=1):
    return ConfigDict({"data": data, "fsdp": fsdp, "tensor": tensor})


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (axes(), (8, 1, 1)),
        (axes(2, -1), (2, 4, 1)),
        (axes(2, 2, 2), (2, 2, 2)),
        (axes(8), (8, 1, 1)),
    ],
)
def test_one_axis_takes_what_is_left(config, shape):
    assert mesh_shape(config, 8) == shape
    mesh = make_mesh(config)
    assert tuple(mesh.shape.values()) == shape
    assert batch_shards(mesh) == shape[0] * shape[1]


@pytest.mark.parametrize(
    "config", [axes(3), axes(-1, 3), axes(16), axes(-1, -1), axes(0), axes(-2)]
)
def test_mesh_that_does_not_fit_is_refused(config):
    with pytest.raises(UserError, match=r"mesh\.data="):
        mesh_shape(config, 8)


def test_pinned_rows_are_split_over_data_and_fsdp():
    mesh = make_mesh(axes(2, 2, 2))
    with jax.set_mesh(mesh):
        pinned = jax.jit(constrain_batch_sharding)(jnp.zeros((8, 3, 4)))
    assert pinned.sharding.shard_shape(pinned.shape) == (2, 3, 4)


def test_without_a_mesh_nothing_is_pinned():
    x = jnp.zeros((3, 2))
    assert constrain_batch_sharding(x) is x


def test_data_crosses_the_slow_links_between_slices():
    assert slice_shape((8, 4, 1), 2) == (2, 1, 1)
    assert slice_shape((2, 64, 1), 4) == (2, 2, 1)
    with pytest.raises(UserError, match=r"to a multiple of 4"):
        slice_shape((2, 1, 16), 4)
