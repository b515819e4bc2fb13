"""The compiler's clock, on programs small enough to be added up by hand."""

import pytest

from can_jax.distributed.hardware import Chip
from can_jax.distributed.mesh import make_mesh
from can_jax.plan.clocks import Clock
from can_jax.plan.cycles import estimate_step
from can_jax.plan.program import Program
from can_jax.plan.topology import Topology
from tests.helpers.configs import small_config

# One cycle a second, one byte a second from memory and ten to each of the eight devices.
CLOCK = Clock(1.0, 1.0, "by hand")
TOPOLOGY = Topology(
    "v5e:2x4", [None] * 8, Chip("x", 2.0, 2**30, 10.0, 1.0), (8,), slices=1, exact=True
)


def estimated(text):
    return estimate_step(Program(text), make_mesh(small_config().mesh), TOPOLOGY, CLOCK)


def seconds(text):
    """The seconds of each instruction in a step, those of zero left out."""
    return {charge.name: charge.total for charge in estimated(text).charges if charge.total}


def cycles(number):
    return f'backend_config={{"window_config":{{"estimated_cycles":"{number}"}}}}'


LOOPS = f"""HloModule step, is_scheduled=true

%fused (p.0: f32[4]) -> f32[4] {{
  %p.0 = f32[4]{{0}} parameter(0)
  ROOT %inner = f32[4]{{0}} negate(%p.0), {cycles(1000)}
}}

%inner_condition (p.1: (s32[], f32[4])) -> pred[] {{
  %bound.1 = s32[] constant(5)
  ROOT %lt.1 = pred[] compare(%p.1, %bound.1), direction=LT, {cycles(1)}
}}

%inner_body (p.2: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %work.1 = f32[4]{{0}} fusion(%p.2), kind=kLoop, calls=%fused, {cycles(7)}
  ROOT %tuple.1 = (s32[], f32[4]{{0}}) tuple(%p.2, %work.1)
}}

%outer_condition (p.3: (s32[], f32[4])) -> pred[] {{
  %bound.2 = s32[] constant(99)
  ROOT %lt.2 = pred[] compare(%p.3, %bound.2), direction=LT
}}

%outer_body (p.4: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %while.1 = (s32[], f32[4]{{0}}) while(%p.4), condition=%inner_condition, body=%inner_body
  ROOT %work.2 = (s32[], f32[4]{{0}}) fusion(%while.1), kind=kLoop, calls=%fused, {cycles(3)}
}}

ENTRY %main (p.5: f32[4]) -> f32[4] {{
  %p.5 = f32[4]{{0}} parameter(0)
  %work.3 = f32[4]{{0}} fusion(%p.5), kind=kLoop, calls=%fused, {cycles(11)}
  %while.2 = (s32[], f32[4]{{0}}) while(%work.3), condition=%outer_condition, body=%outer_body, backend_config={{"known_trip_count":{{"n":"3"}}}}
  ROOT %result = f32[4]{{0}} get-tuple-element(%while.2), index=1
}}
"""  # noqa: E501


def test_loops_multiply_and_fusions_count_once():
    found = seconds(LOOPS)
    # The compiler's trip count, 3, comes before the constant of the condition.
    assert found.pop("lt.2") == 3 * (1 + 4)  # Without an estimate: it writes 1 byte and reads 4.
    assert found == {"work.1": 3 * 5 * 7, "lt.1": 3 * 5 * 1, "work.2": 3 * 3, "work.3": 11}
    assert estimated(LOOPS).kernels == 15 + 15 + 3 + 1  # Scalars without an estimate are none.


def test_loop_of_unknown_length_is_said():
    text = LOOPS.replace("constant(5)", "add(%p.1, %p.1)")
    (charge,) = estimated(text).unknown()
    assert (charge.name, charge.note) == ("while.1", "a loop of unknown length, counted once")
    assert seconds(text)["work.1"] == 3 * 7


def test_the_dearest_branch_of_a_conditional_counts():
    text = f"""HloModule step
%cheap (p.1: f32[4]) -> f32[4] {{
  ROOT %little = f32[4]{{0}} negate(%p.1), {cycles(2)}
}}
%dear (p.2: f32[4]) -> f32[4] {{
  ROOT %much = f32[4]{{0}} negate(%p.2), {cycles(9)}
}}
%other (p.3: f32[4]) -> f32[4] {{
  ROOT %some = f32[4]{{0}} negate(%p.3), {cycles(5)}
}}
ENTRY %main (p.0: s32[]) -> f32[4] {{
  %c.1 = f32[4]{{0}} conditional(%p.0, %a, %b), branch_computations={{%cheap, %dear}}
  %c.2 = f32[4]{{0}} conditional(%p.0, %a, %b), true_computation=%other, false_computation=%cheap
  ROOT %call.1 = f32[4]{{0}} call(%c.1), to_apply=%cheap
}}
"""
    charges = estimated(text).charges
    assert [(charge.name, charge.total) for charge in charges] == [
        ("much", 9), ("some", 5), ("little", 2),
    ]  # fmt: skip


COPIES = f"""HloModule step
%fused (p.0: f32[4]) -> f32[4] {{
  ROOT %inner = f32[4]{{0}} negate(%p.0)
}}
ENTRY %main (p.1: f32[4]) -> f32[4] {{
  %p.1 = f32[4]{{0}} parameter(0)
  %start.1 = (f32[4]{{0:S(1)}}, f32[4]{{0}}, u32[]{{:S(2)}}) copy-start(%p.1)
  %start.2 = (f32[2]{{0:S(1)}}, f32[2]{{0}}, u32[]{{:S(2)}}) copy-start(%p.1)
  %work.1 = f32[4]{{0}} fusion(%p.1), kind=kLoop, calls=%fused, {cycles(10)}
  %done.1 = f32[4]{{0:S(1)}} copy-done(%start.1)
  %work.2 = f32[4]{{0}} fusion(%done.1), kind=kLoop, calls=%fused, {cycles(5)}
  %done.2 = f32[2]{{0:S(1)}} copy-done(%start.2)
  ROOT %work.3 = f32[4]{{0}} fusion(%done.2), kind=kLoop, calls=%fused, {cycles(1)}
}}
"""


def test_only_the_rest_of_a_copy_that_work_does_not_hide_counts():
    # The first takes 16 s from 0, the second 8 s from 16. The work in between takes 10 and 5 s.
    assert seconds(COPIES) == {
        "work.1": 10, "start.1": 16 - 10, "work.2": 5, "start.2": 24 - 21, "work.3": 1,
    }  # fmt: skip
    assert estimated(COPIES).parts() == {"copies": 9, "other": 16}
    assert estimated(COPIES).kernels == 5


COLLECTIVES = f"""HloModule step
%add (a: f32[], b: f32[]) -> f32[] {{
  ROOT %sum = f32[] add(%a, %b)
}}
%begin (p.1: f32[10]) -> f32[80] {{
  %gather.1 = f32[80]{{0}} all-gather(%p.1), channel_id=3, replica_groups={{{{0,1,2,3,4,5,6,7}}}}, dimensions={{0}}, frontend_attributes={{chain_id="0"}}
  ROOT %call.1 = (f32[10]{{0}}, f32[80]{{0}}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}}
%advance (p.2: f32[10], p.3: f32[4]) -> f32[80] {{
  %gather.2 = f32[80]{{0}} all-gather(%p.2), channel_id=3, replica_groups={{{{0,1,2,3,4,5,6,7}}}}, dimensions={{0}}, frontend_attributes={{chain_id="0"}}
  %work = f32[4]{{0}} negate(%p.3)
  ROOT %tuple.1 = (f32[4]{{0}}, f32[80]{{0}}) tuple(%work, %gather.2)
}}
%finish (p.4: f32[10]) -> f32[80] {{
  %gather.3 = f32[80]{{0}} all-gather(%p.4), channel_id=3, replica_groups={{{{0,1,2,3,4,5,6,7}}}}, dimensions={{0}}, frontend_attributes={{chain_id="0"}}
  ROOT %call.2 = f32[80]{{0}} custom-call(%gather.3), custom_call_target="AsyncCollectiveDone"
}}
%fused (p.5: f32[4]) -> f32[4] {{
  ROOT %inner = f32[4]{{0}} negate(%p.5)
}}
ENTRY %main (p.0: f32[10]) -> f32[80] {{
  %p.0 = f32[10]{{0}} parameter(0)
  %reduce.1 = f32[10]{{0}} all-reduce(%p.0), channel_id=1, replica_groups={{{{0,1,2,3,4,5,6,7}}}}, to_apply=%add
  %start.1 = f32[10]{{0}} all-reduce-start(%p.0), channel_id=2, replica_groups={{{{0,1,2,3,4,5,6,7}}}}, to_apply=%add
  %work.1 = f32[4]{{0}} fusion(%p.0), kind=kLoop, calls=%fused, {cycles(4)}
  %done.1 = f32[10]{{0}} all-reduce-done(%start.1)
  %start.2 = (f32[10]{{0}}, f32[80]{{0}}) fusion(%p.0), kind=kCustom, calls=%begin
  %work.2 = f32[4]{{0}} fusion(%p.0), kind=kLoop, calls=%fused, {cycles(100)}
  %work.3 = (f32[4]{{0}}, f32[80]{{0}}) fusion(%start.2, %work.1), kind=kOutput, calls=%advance, {cycles(20)}
  ROOT %done.2 = f32[80]{{0}} fusion(%work.3), kind=kCustom, calls=%finish
}}
"""  # noqa: E501


def test_only_the_rest_of_a_collective_that_work_does_not_hide_counts():
    """An all-reduce sends 2 x 7/8 of 40 bytes, an all-gather 7/8 of 320, at ten bytes a second."""
    found = seconds(COLLECTIVES)
    assert found.pop("reduce.1") == pytest.approx(7.0)  # Nothing runs beside it.
    assert found.pop("start.1") == pytest.approx(7.0 - 4)
    # Of the work beside the fused collective only that counts that advances it.
    assert found.pop("start.2") == pytest.approx(28.0 - 20)
    assert found == {"work.1": 4, "work.2": 100, "work.3": 20}
    assert estimated(COLLECTIVES).parts()["collectives"] == pytest.approx(18.0)
    assert estimated(COLLECTIVES).computing == 124
    assert estimated(COLLECTIVES).kernels == 6


def test_collective_that_ends_elsewhere_counts_in_full():
    text = COLLECTIVES.replace("%done.1 = f32[10]{0} all-reduce-done(%start.1)", "")
    assert seconds(text)["start.1"] == pytest.approx(7.0)
    text = COLLECTIVES.replace("ROOT %done.2 = f32[80]{0} fusion(%work.3), kind=kCustom", "%x = y(")
    assert seconds(text)["start.2"] == pytest.approx(28.0)


def test_collective_inside_of_a_fusion_counts_in_full():
    text = COLLECTIVES.replace("AsyncCollectiveStart", "Sharding")
    assert seconds(text)["start.2"] == pytest.approx(28.0)
    assert "done.2" not in seconds(text)  # One chain, counted once.


def test_each_collective_of_a_channel_counts():
    """The gradients of all blocks can have one channel, as those that the compiler adds have."""
    text = COLLECTIVES.replace("channel_id=2", "channel_id=1").replace(
        "channel_id=3", "channel_id=1"
    )
    assert seconds(text) == seconds(COLLECTIVES)
    same = "%reduce.2 = f32[10]{0} all-reduce(%p.0), channel_id=1, to_apply=%add\n  %start.1 ="
    found = seconds(COLLECTIVES.replace("%start.1 =", same))
    assert found["reduce.1"] == found["reduce.2"] == pytest.approx(7.0)


def test_what_has_no_estimate_is_charged_at_its_roofline():
    text = """HloModule step
ENTRY %main (p.0: f32[4,8]) -> f32[4] {
  %p.0 = f32[4,8]{1,0:T(8,128)} parameter(0)
  %p.1 = f32[8,16]{1,0} parameter(1)
  %room = f32[9]{0} custom-call(), custom_call_target="AllocateBuffer"
  %reverse.1 = f32[4,8]{1,0} reverse(%p.0), dimensions={0}
  %kernel.1 = f32[2]{0} custom-call(%p.1), custom_call_target="tpu_custom_call"
  %kernel.2 = f32[2]{0} custom-call(%p.1), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":"3000","bytes_accessed":"8"}}}
  %kernel.3 = f32[2]{0} custom-call(%p.1), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":"3","bytes_accessed":"800"}}}
  ROOT %dot.1 = f32[4,16]{1,0} dot(%p.0, %p.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""  # noqa: E501
    found = estimated(text)
    assert seconds(text) == {
        "reverse.1": 4 * (8 * 128 + 32),  # The tiles of its operand are stored whole.
        "kernel.1": 4 * (128 + 2),
        "kernel.2": 3000 / 2,
        "kernel.3": 800,
        "dot.1": 4 * (8 * 128 + 128 + 64),
    }
    assert [(c.name, c.note) for c in found.unknown()] == [
        ("kernel.2", None), ("kernel.3", None), ("kernel.1", "unknown FLOPs of tpu_custom_call"),
    ]  # fmt: skip
    assert found.bases() == {"memory": found.seconds} and found.kinds()["products"] == 4 * (
        8 * 128 + 128 + 64
    )
    assert [charge.name for charge in found.top(2)] == ["dot.1", "reverse.1"]


def test_custom_calls_in_a_fusion_are_named_unless_they_do_nothing():
    text = """HloModule step
%gather (p.1: f32[4]) -> f32[4] {
  %p.1 = f32[4]{0} parameter(0)
  %note.1 = f32[4]{0} custom-call(%p.1), custom_call_target="AssumeGatherIndicesInBound"
  ROOT %gather.1 = f32[4]{0} gather(%note.1, %note.1)
}
%kernel (p.2: f32[4]) -> f32[4] {
  %p.2 = f32[4]{0} parameter(0)
  ROOT %call.1 = f32[4]{0} custom-call(%p.2), custom_call_target="some_kernel"
}
ENTRY %main (p.0: f32[4]) -> f32[4] {
  %p.0 = f32[4]{0} parameter(0)
  %fusion.1 = f32[4]{0} fusion(%p.0), kind=kCustom, calls=%gather
  ROOT %fusion.2 = f32[4]{0} fusion(%p.0), kind=kCustom, calls=%kernel
}
"""
    (unknown,) = estimated(text).unknown()
    assert (unknown.name, unknown.note) == ("fusion.2", "unknown FLOPs of some_kernel")
    assert [charge.kind for charge in estimated(text).charges] == ["elementwise", "custom"]


def test_casts_of_arguments_belong_to_the_part_that_reads_them():
    text = f"""HloModule step
ENTRY %main (p.0: f32[4]) -> bf16[4] {{
  %p.0 = f32[4]{{0}} parameter(0), metadata={{op_name="state.parameters['decoder']['x']"}}
  %copy.1 = f32[4]{{0}} copy(%p.0), {cycles(3)}
  %cast.1 = bf16[4]{{0}} convert(%copy.1), {cycles(4)}
  ROOT %add.1 = bf16[4]{{0}} add(%cast.1, %cast.1), {cycles(5)}
}}
"""
    assert estimated(text).parts() == {"decoder_forward": 4, "copies": 3, "other": 5}
