import pytest

from can_jax.plan.parts import PARTS, line_of, part_of, part_of_argument
from can_jax.plan.program import Frame


def frames(*pairs):
    return [Frame(f"/home/me/can_jax/can_jax/{path}", function, 1) for path, function in pairs]


STEP = ("train/step.py", "Step.train")
LOSS = ("train/losses.py", "loss_and_gradients")
CALL = ("models/can.py", "CAN.__call__")


@pytest.mark.parametrize(
    ("stack", "operation", "part"),
    [
        ([STEP, LOSS, CALL, ("models/encoder.py", "Encoder.__call__")], "jvp()", "encoder_forward"),
        (
            [
                STEP,
                LOSS,
                CALL,
                ("models/encoder.py", "Encoder.__call__"),
                ("models/vit.py", "attend"),
            ],
            "transpose(jvp())/dot_general",
            "encoder_backward",
        ),
        (
            [STEP, LOSS, CALL, ("models/decoder.py", "Decoder.__call__"), ("models/vit.py", "x")],
            "checkpoint/rematted_computation/mul",
            "decoder_backward",
        ),
        (
            [STEP, LOSS, CALL, ("models/heads.py", "Projector.__call__")],
            "jvp()",
            "heads_and_losses_forward",
        ),
        (
            [STEP, LOSS, ("objectives/contrastive.py", "loss")],
            "transpose(jvp())",
            "heads_and_losses_backward",
        ),
        ([STEP, LOSS, ("train/losses.py", "prepare")], "vmap()", "augmentation"),
        ([STEP, ("train/step.py", "TrainState.updated")], "and", "optimizer"),
        ([STEP], "mul", "optimizer"),
        ([STEP, LOSS, CALL], "jvp()/add", None),
        ([], "", None),
    ],
)
def test_part_of_an_instruction_is_that_of_its_outermost_function(stack, operation, part):
    assert part_of(frames(*stack), operation) == part
    assert part is None or part in PARTS


def test_innermost_line_of_this_package_is_named():
    library = Frame("/venv/flax/nnx/nn/normalization.py", "LayerNorm.__call__", 12)
    stack = [*frames(STEP, ("models/encoder.py", "Encoder.__call__")), library]
    assert line_of(stack) == "can_jax/models/encoder.py:1 Encoder.__call__"
    assert line_of([library]) == "/venv/flax/nnx/nn/normalization.py:12 LayerNorm.__call__"
    assert line_of([Frame("/old/a.py", "", 7)]) == "/old/a.py:7" and line_of([]) is None


@pytest.mark.parametrize(
    ("operation", "part"),
    [
        (r"state.parameters[\'encoder\'][\'norm\'][\'scale\']", "encoder_forward"),
        ("state.parameters['decoder']['norm']['scale']", "decoder_forward"),
        ("state.parameters['projector']['norm']['scale']", "heads_and_losses_forward"),
        ("state.optimizer[0].mu['encoder']['norm']['scale']", "optimizer"),
        ("batch.views", "augmentation"),
        ("state.step", None),
    ],
)
def test_part_of_an_argument_is_the_one_that_reads_it(operation, part):
    assert part_of_argument(operation) == part
    assert part is None or part in PARTS
