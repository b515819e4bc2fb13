"""The assignment of HLO instructions to parts of the train step, by their source locations."""

from collections.abc import Sequence

from can_jax.plan.program import Frame

# Rules that assign a frame of a Python stack to a part of the step: a piece of the file's path, the
# beginning of the function's name, and the part. The outermost frame that matches a rule decides.
RULES = (
    ("can_jax/augment/", "", "augmentation"),
    ("can_jax/train/losses.py", "prepare", "augmentation"),
    ("can_jax/train/losses.py", "Inputs.noisy", "augmentation"),
    ("can_jax/models/masking.py", "", "augmentation"),
    ("can_jax/models/decoder.py", "", "decoder"),
    ("can_jax/models/encoder.py", "Encoder", "encoder"),
    ("can_jax/models/heads.py", "", "heads_and_losses"),
    ("can_jax/models/can.py", "pool", "heads_and_losses"),
    ("can_jax/train/losses.py", "losses", "heads_and_losses"),
    ("can_jax/train/losses.py", "total_loss", "heads_and_losses"),
    ("can_jax/train/collapse.py", "", "heads_and_losses"),
    ("can_jax/train/network.py", "statistics_of", "heads_and_losses"),
    ("can_jax/objectives/", "", "heads_and_losses"),
    ("can_jax/optimizers/", "", "optimizer"),
    ("/optax/", "", "optimizer"),
    ("can_jax/train/step.py", "TrainState.", "optimizer"),
    ("can_jax/train/step.py", "all_finite", "optimizer"),
)
# The beginning of the ``op_name`` of an argument, and the part that reads it first.
ARGUMENTS = {
    "state.parameters['encoder']": "encoder_forward",
    "state.parameters['decoder']": "decoder_forward",
    "state.parameters[": "heads_and_losses_forward",
    "state.batch_stats['encoder']": "encoder_forward",
    "state.batch_stats[": "heads_and_losses_forward",
    "state.optimizer": "optimizer",
    "batch.": "augmentation",
}
# Parts that run forward and backward.
TRAINED = ("encoder", "decoder", "heads_and_losses")
PARTS = (
    *(f"{part}_{way}" for part in TRAINED for way in ("forward", "backward")),
    "augmentation",
    "optimizer",
    "copies",
    "collectives",
    "other",
)
# The functions between the step and its parts; instructions of these alone belong to no part.
_SHARED = ("gradients", "loss_and_gradients", "forward", "CAN.", "accumulate_gradients")


def part_of(stack: Sequence[Frame], operation: str) -> str | None:
    """Return the part of the train step to which an instruction belongs, one of `PARTS`.

    Args:
        stack: The Python stack that traced the instruction, the outermost frame first.
        operation: The instruction's ``op_name``, which contains ``transpose(`` in a backward pass
            and ``rematted_computation`` where values are recomputed.

    Returns:
        The part, or None if the stack does not determine it.
    """
    for frame in stack:
        for path, function, part in RULES:
            if path in frame.file and frame.function.startswith(function):
                if part not in TRAINED:
                    return part
                backward = "transpose(" in operation or "rematted_computation" in operation
                return f"{part}_{'backward' if backward else 'forward'}"
    in_step = any(frame.function.startswith("Step.train") for frame in stack)
    shared = any(frame.function.startswith(_SHARED) for frame in stack)
    return "optimizer" if in_step and not shared else None


def part_of_argument(operation: str) -> str | None:
    """Return the part of the train step that first reads a step argument, given the argument's
    ``op_name``.

    The compiler's casts and copies of a parameter have no Python stack, so they are assigned to the
    part that first reads the parameter.
    """
    for name, part in ARGUMENTS.items():
        if operation.replace("\\'", "'").startswith(name):
            return part
    return None


def line_of(stack: Sequence[Frame]) -> str | None:
    """Return the innermost source line of this package in a stack, as ``path:line function``.

    If the stack has no line of this package, return the innermost line of the stack. If the stack
    is empty, return None.
    """
    own = [frame for frame in stack if "can_jax/" in frame.file]
    for frame in reversed(own or list(stack)):
        path = frame.file
        if "/can_jax/" in path:
            path = f"can_jax/{path.rsplit('/can_jax/', 1)[1]}"
        return f"{path}:{frame.line} {frame.function}".rstrip()
    return None
