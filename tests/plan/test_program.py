import pytest

from can_jax.plan.program import Frame, Program, arrays

TEXT = """HloModule step

FileNames
1 "/home/me/can_jax/can_jax/train/step.py"
2 "/home/me/can_jax/can_jax/models/vit.py"
3 "/venv/flax/nnx/nn/normalization.py"

FunctionNames
1 "Step.train"
2 "Encoder.__call__"
3 "LayerNorm.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=151 end_line=151 column=4 end_column=9}
2 {file_name_id=2 function_name_id=2 line=370 end_line=370 column=4 end_column=9}
3 {file_name_id=3 function_name_id=3 line=12 end_line=12 column=4 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}

ENTRY %main (p.0: f32[4]) -> f32[4] {
  %p.0 = f32[4]{0} parameter(0)
  %n.1 = f32[4]{0} negate(%p.0), metadata={op_name="jit(train)/jvp()/mul" stack_frame_id=3}
  %n.2 = f32[4]{0} negate(%n.1), metadata={op_name="x" source_file="/old/a.py" source_line=7}
  ROOT %n.3 = f32[4]{0} negate(%n.2)
}
"""
# Other versions number the parents themselves, and the outermost frame has none.
DIRECT = TEXT.replace("parent_frame_id=1", "parent_frame_id=0").replace(
    "2 {file_location_id=2 parent_frame_id=2}", "2 {file_location_id=2 parent_frame_id=1}"
)
DIRECT = DIRECT.replace(
    "3 {file_location_id=3 parent_frame_id=3}", "3 {file_location_id=3 parent_frame_id=2}"
)


@pytest.mark.parametrize("text", [TEXT, DIRECT])
def test_stack_of_an_instruction_is_read_outermost_first(text):
    program = Program(text)
    first, second, third = program.entry.instructions[1:]
    stack = program.stack(first)
    assert [frame.function for frame in stack] == [
        "Step.train", "Encoder.__call__", "LayerNorm.__call__",
    ]  # fmt: skip
    assert [frame.line for frame in stack] == [151, 370, 12]
    assert program.stack(second) == (Frame("/old/a.py", "", 7),)
    assert program.stack(third) == ()


def test_instructions_know_their_operands_and_results():
    text = """ENTRY %main (p.0: (s32[], /*index=1*/f32[4])) -> f32[] {
  %t.1 = (s32[]{:T(128)}, /*index=1*/bf16[3,5]{1,0:T(8,128)(2,1)S(1)}) fusion(%a.1, /*index=1*/%b.2), kind=kLoop, calls=%c.3
  ROOT %c.1 = f32[] constant(-1.5)
}
"""  # noqa: E501
    first, second = Program(text).entry.instructions
    assert (first.opcode, first.operands, first.called) == ("fusion", ("a.1", "b.2"), ("c.3",))
    assert [array.shape for array in first.arrays] == [(), (3, 5)]
    assert first.bytes == 4 + 8 * 128 * 2 and not first.root
    assert (second.opcode, second.arguments, second.root) == ("constant", "-1.5", True)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("f32[3,5]{1,0:T(8,128)}", 8 * 128 * 4),
        ("f32[3,5]{0,1:T(8,128)}", 8 * 128 * 4),
        ("bf16[2,300,9]{1,2,0:T(8,128)(2,1)}", 2 * 384 * 16 * 2),
        ("f32[300]{0:T(256)}", 512 * 4),
        ("f32[7,1]{1,0}", 28),
        ("pred[]", 1),
        ("(s32[2], u8[3]{0})", 11),
    ],
)
def test_padded_tiles_are_stored_whole(text, size):
    assert sum(array.bytes for array in arrays(text)) == size
