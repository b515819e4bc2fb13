import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from can_jax.distributed.mesh import make_mesh
from can_jax.plan.hlo import Collective, bytes_of, collectives
from tests.helpers.configs import small_config


def mesh_of(data, fsdp, tensor):
    return make_mesh(small_config(mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor).mesh)


def compiled(function, mesh, out, *arrays):
    """The text of a program on arrays with shardings."""
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in arrays
    ]
    jitted = jax.jit(function, out_shardings=NamedSharding(mesh, out))
    return jitted.lower(*shapes).compile().as_text()


def test_collectives_of_a_loop_count_as_often_as_it_runs():
    mesh = mesh_of(2, 4, 1)

    def program(x):
        def body(total, _):
            return jnp.tanh(total + jnp.sum(x * total[0], axis=0)), None

        return jax.lax.scan(body, jnp.ones(5), None, length=7)[0]

    text = compiled(program, mesh, P(), ((8, 5), P(("data", "fsdp"))))
    (found,) = collectives(text, mesh)
    assert (found.kind, found.axes, found.devices) == ("all-reduce", "data+fsdp", 8)
    assert (found.times, found.bytes, found.arrays) == (7, 20, ("f32[5]",))


@pytest.mark.parametrize(("axis", "devices"), [("data", 2), ("fsdp", 4)])
def test_axis_that_a_gather_crosses_is_named(axis, devices):
    mesh = mesh_of(2, 4, 1)
    text = compiled(lambda x: x * 2, mesh, P(), ((8, 3), P(axis)))
    (found,) = collectives(text, mesh)
    assert (found.kind, found.axes, found.devices) == ("all-gather", axis, devices)
    assert found.bytes == 96 and found.times == 1


TPU = """HloModule step, is_scheduled=true

%all-reduce-scatter.6 (input.20: bf16[64,32]) -> bf16[64,8] {
  %input.20 = bf16[64,32]{0,1:T(8,128)(2,1)S(1)} parameter(0)
  %all-reduce.1 = bf16[64,32]{0,1:T(8,128)} all-reduce(%input.20), channel_id=4, replica_groups={{0,1,2,3},{4,5,6,7}}
  ROOT %slice.1 = bf16[64,8]{0,1} dynamic-slice(%all-reduce.1)
}

%condition.1 (p.1: (s32[], bf16[64,8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(24)
  ROOT %lt.1 = pred[]{:T(512)} compare(%p.1, %constant.1), direction=LT
}

%part.1 (p.2: bf16[64,8]) -> bf16[64,32] {
  ROOT %all-gather.1 = bf16[64,32]{1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=7, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={1}, frontend_attributes={chain_id="0"}
}

%part.2 (p.3: bf16[64,8]) -> bf16[64,32] {
  ROOT %all-gather.2 = bf16[64,32]{1,0:T(8,128)(2,1)} all-gather(%p.3), channel_id=7, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={1}, frontend_attributes={chain_id="0"}
}

%body.1 (p.4: (s32[], /*index=1*/bf16[64,8])) -> (s32[], bf16[64,8]) {
  %fusion.1 = bf16[64,8]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.6
  %fusion.2 = bf16[64,32]{1,0} fusion(%x), kind=kCustom, calls=%part.1
  %fusion.3 = bf16[64,32]{1,0} fusion(%x), kind=kCustom, calls=%part.2
  ROOT %tuple.1 = (s32[], bf16[64,8]{1,0}) tuple(%i, %fusion.1)
}

ENTRY %main.1 (p.0: bf16[64,8]) -> f32[4] {
  %while.1 = (s32[], bf16[64,8]{1,0}) while(%tuple.0), condition=%condition.1, body=%body.1, metadata={op_name="scan"}
  %permute.1 = (bf16[4,2]{1,0}, bf16[4,2]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%y), channel_id=9, source_target_pairs={{0,0},{1,4},{4,1},{3,3}}
  %permute.2 = bf16[4,2]{1,0} collective-permute-done(%permute.1)
  %gather.1 = (f32[2]{0}, f32[4]{0}) all-gather-start(%z), channel_id=10, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  ROOT %gather.2 = f32[4]{0} all-gather-done(%gather.1)
}
"""  # noqa: E501


def test_what_the_tpu_compiler_writes():
    """Loops by the constant of their condition, one chain counted once, scatters by their name,
    groups in each of the forms that there are."""
    found = {c.kind: c for c in collectives(TPU, mesh_of(2, 4, 1)) if c.devices != 2}
    assert set(found) == {"reduce-scatter", "all-gather"}
    scatter, gather = found["reduce-scatter"], found["all-gather"]
    assert (scatter.axes, scatter.times, scatter.arrays) == ("fsdp", 24, ("bf16[64,8]",))
    assert (gather.axes, gather.times, gather.bytes) == ("fsdp", 24, 64 * 32 * 2)
    permute, started = (c for c in collectives(TPU, mesh_of(2, 4, 1)) if c.devices == 2)
    assert (permute.kind, permute.axes, permute.bytes) == ("collective-permute", "data+fsdp", 16)
    assert (started.kind, started.axes, started.arrays) == ("all-gather", "data", ("f32[4]",))


def test_collectives_that_share_a_channel_are_different_ones():
    text = TPU.replace(", channel_id=9", ", channel_id=4").replace("channel_id=10", "channel_id=4")
    assert collectives(text, mesh_of(2, 4, 1)) == collectives(TPU, mesh_of(2, 4, 1))


@pytest.mark.parametrize(
    ("array", "size"),
    [("bf16[3,4]", 24), ("f32[]", 4), ("pred[8]", 8), ("u8[5]", 5), ("f8e4m3fn[7]", 7)],
)
def test_bytes_of_an_array(array, size):
    assert bytes_of(array) == size


def test_bytes_that_a_device_sends():
    def moved(kind):
        return Collective(kind, "data", 4, ("f32[4]",), 16, 1).moved

    # Of 16 bytes a quarter is there already; a reduction goes around twice.
    assert moved("all-gather") == 12 and moved("all-reduce") == 24
    assert moved("reduce-scatter") == 48 and moved("collective-permute") == 16
    assert np.isclose(moved("all-to-all"), 12)
