"""The bytes and FLOPs of HLO instructions for which the compiler estimates no time."""

import math
import re
from collections.abc import Iterator

from can_jax.plan.program import Computation, Instruction, Program, arrays

# Instructions that move and compute nothing.
FREE = frozenset(
    (
        "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
        "partition-id", "replica-id", "opt-barrier", "optimization-barrier", "domain",
        "add-dependency",
    )
)  # fmt: skip
# Custom calls that only inform the compiler, reserve memory, or reinterpret existing memory.
FREE_TARGETS = frozenset(
    (
        "AllocateBuffer", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked",
        "ConcatBitcast", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape",
        "annotate_device_placement",
    )
)  # fmt: skip
# A number, such as the FLOPs, that the author of a custom call states in its cost estimate.
_STATED = r'"?cost_estimate"?:\s*\{{[^}}]*"?{}"?:\s*"?(\d+)'
SLICES = ("slice", "dynamic-slice", "gather")
PRODUCTS = ("dot", "convolution", "ragged-dot")
# Instructions that only move elements or create constants; a fusion of these is a copy.
MOVES = FREE | {
    "copy", "transpose", "reshape", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate",
    "pad", "reverse", "broadcast", "iota", "bitcast-convert",
}  # fmt: skip


def is_free(instruction: Instruction) -> bool:
    """Return whether an instruction neither computes nor moves anything."""
    return instruction.opcode in FREE or target(instruction) in FREE_TARGETS


def target(instruction: Instruction) -> str | None:
    """Return the target of a custom call, or None for other instructions."""
    return instruction.attribute(r'custom_call_target="([^"]*)"')


def inside(program: Program, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
    """Yield each instruction of the computations that an instruction calls, such as a fusion's
    body.

    Nested fusions are expanded. Each instruction comes with the computation that contains it.

    Args:
        program: The program that contains the instruction.
        instruction: The calling instruction, such as a fusion.
    """
    for name in instruction.called:
        computation = program.computations.get(name)
        if computation is None:
            continue
        for inner in computation.instructions:
            yield computation, inner
            if inner.opcode == "fusion":
                yield from inside(program, inner)


def origin_of(program: Program, instruction: Instruction) -> Instruction:
    """Return the instruction whose metadata states the source location of a given instruction.

    An instruction usually has metadata of its own. For a fusion without metadata, such as one
    around a cuBLAS call, return the last instruction with metadata inside the fusion.
    """
    if instruction.opcode != "fusion" or instruction.attribute('op_name="([^"]*)"'):
        return instruction
    named = [i for _, i in inside(program, instruction) if i.attribute('op_name="([^"]*)"')]
    return named[-1] if named else instruction


def kind_of(program: Program, instruction: Instruction) -> str:
    """Return the kind of an instruction: ``products``, ``copies``, ``custom`` or ``elementwise``.

    A fusion with a matrix product is of the kind ``products``. A fusion that only moves elements is
    of the kind ``copies``.
    """
    parts = [instruction]
    if instruction.opcode == "fusion":
        parts = [inner for _, inner in inside(program, instruction) if inner.opcode != "fusion"]
    opcodes = {part.opcode for part in parts if target(part) not in FREE_TARGETS}
    if opcodes & set(PRODUCTS) or any(_is_library_product(part) for part in parts):
        return "products"
    if "custom-call" in opcodes:
        return "custom"
    return "copies" if opcodes <= MOVES | {"copy-start", "copy-done"} else "elementwise"


def _is_library_product(instruction: Instruction) -> bool:
    name = target(instruction) or ""
    return bool(re.search(r"gemm|matmul|conv", name, re.IGNORECASE))


def moved_bytes(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Return the bytes that an instruction reads and writes if nothing is cached.

    For a slice, only the elements of the slice count as read. An in-place update counts as
    one read and one write of the replaced elements.

    Args:
        program: The program that contains the instruction.
        computation: The computation that contains the instruction.
        instruction: The instruction.
    """
    opcode = instruction.opcode
    if opcode in SLICES:
        return 2 * instruction.bytes
    if opcode == "dynamic-update-slice":
        return 2 * _size(computation, instruction.operands[1])
    called = program.computations.get(instruction.called[0]) if instruction.called else None
    if opcode == "fusion" and called is not None:
        read = sum(
            _read(called, position, _size(computation, operand))
            for position, operand in enumerate(instruction.operands)
        )
        return read + _written(called, called.root)
    written = instruction.bytes - _workspace(instruction)
    moved = written + sum(_size(computation, name) for name in instruction.operands)
    # The author of a custom call may state that it moves its arrays more than once.
    stated = instruction.attribute(_STATED.format("bytes_accessed"))
    return max(moved, int(stated or 0))


def _workspace(instruction: Instruction) -> int:
    """Return the bytes of the workspace that is part of the result of a cuBLAS or cuDNN call."""
    if "__cu" not in (target(instruction) or ""):
        return 0
    reserved = (a for a in instruction.arrays[1:] if a.type in ("s8", "u8") and len(a.shape) == 1)
    return sum(array.bytes for array in reserved)


def _size(computation: Computation, name: str) -> int:
    instruction = computation.by_name.get(name)
    return instruction.bytes if instruction else 0


def _read(called: Computation, position: int, size: int) -> int:
    """Return the bytes that a fused computation reads of one operand.

    Args:
        called: The fused computation.
        position: The index of the operand.
        size: The size of the operand in bytes.
    """
    names = {
        i.name
        for i in called.instructions
        if i.opcode == "parameter" and i.arguments == str(position)
    }
    read = 0
    for user in called.instructions:  # In order, so that views of the parameter come first.
        used = names.intersection(user.operands)
        if not used:
            continue
        if user.opcode == "bitcast":
            names.add(user.name)
        elif user.opcode in SLICES and user.operands[0] in names:
            read += user.bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] in names:
            pass  # The array is updated in place; `_written` counts the replaced elements.
        else:
            return size
    return min(read, size)


def _written(called: Computation, root: Instruction) -> int:
    """Return the bytes that a fused computation writes for its root, or for one element of a root
    tuple."""
    if root.opcode == "tuple":
        return sum(_written(called, called.by_name[name]) for name in root.operands)
    if root.opcode == "bitcast" and root.operands[0] in called.by_name:
        return _written(called, called.by_name[root.operands[0]])
    if root.opcode == "dynamic-update-slice":
        return _size(called, root.operands[1])
    return root.bytes - _workspace(root)


def flops(program: Program, computation: Computation, instruction: Instruction) -> float | None:
    """Return the FLOPs of the matrix products of an instruction, or None if they are unknown.

    Elementwise operations count as 0 FLOPs, since their time depends on memory traffic. Among
    custom calls, only Pallas calls with a ``cost_estimate``, cuBLAS matrix products and cuDNN
    attention have known FLOPs.

    Args:
        program: The program that contains the instruction.
        computation: The computation that contains the instruction.
        instruction: The instruction.
    """
    found = [(computation, instruction)]
    if instruction.opcode == "fusion":  # It may hold a library's product beside a slice.
        found = [one for one in inside(program, instruction) if not is_free(one[1])]
    counted = [_single_flops(*one) for one in found]
    return None if None in counted else math.fsum(number or 0.0 for number in counted)


def custom_targets(program: Program, instruction: Instruction) -> list[str]:
    """Return the targets of a custom call, or of the custom calls in a fusion, in sorted order.

    Targets that neither compute nor move anything are left out.
    """
    found = [instruction]
    if instruction.opcode == "fusion":
        found = [inner for _, inner in inside(program, instruction)]
    return sorted({target(one) or "" for one in found} - FREE_TARGETS - {""})


def _single_flops(computation: Computation, instruction: Instruction) -> float | None:
    if instruction.opcode == "custom-call":
        stated = instruction.attribute(_STATED.format("flops"))
        return float(stated) if stated else _library_flops(computation, instruction)
    is_product = instruction.opcode in PRODUCTS
    return _product_flops(computation, instruction) if is_product else 0.0


def _product_flops(computation: Computation, instruction: Instruction) -> float:
    """Return the FLOPs of a ``dot`` or ``convolution``. A multiply-add counts as two FLOPs."""
    results = math.prod(instruction.arrays[0].shape)
    left, right = (_shape(computation, name) for name in instruction.operands[:2])
    if contracted := instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}"):
        return 2.0 * results * math.prod(left[int(axis)] for axis in contracted.split(","))
    labels = instruction.attribute(r"dim_labels=\w+_(\w+)->")
    if labels and len(labels) == len(right):
        # Each result sums over the kernel's window and its input features.
        return 2.0 * results * math.prod(right) / right[labels.index("o")]
    return 2.0 * results * (left[-1] if left else 1)


def _library_flops(computation: Computation, instruction: Instruction) -> float | None:
    """Return the FLOPs of a cuBLAS matrix product or of cuDNN's attention, or None if unknown."""
    name = target(instruction) or ""
    if "fmha" in name:
        return _attention_flops(computation, instruction, backward="Backward" in name)
    if not re.search("gemm|matmul", name):
        return None
    axes = instruction.attribute(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]')
    left = _shape(computation, instruction.operands[0])
    if axes is None or not left:
        return None
    contracted = math.prod(left[int(axis.strip('" '))] for axis in axes.split(",") if axis)
    return 2.0 * math.prod(instruction.arrays[0].shape) * contracted


def _attention_flops(
    computation: Computation, instruction: Instruction, backward: bool
) -> float | None:
    """Return the FLOPs of cuDNN's attention, or None if the shape of its logits is unknown.

    The forward pass of attention has two matrix products. The backward pass has five matrix
    products, one of which recomputes the logits.
    """
    # Some versions of XLA write spaces after colons here.
    stated = r'"intermediate_tensor_shape":\s*\{[^}]*"dimensions":\s*\[([^\]]*)\]'
    logits = instruction.attribute(stated)
    query = _shape(computation, instruction.operands[0])
    if logits is None or not query:
        return None
    product = 2.0 * math.prod(int(size.strip('" ')) for size in logits.split(",")) * query[-1]
    return (5 if backward else 2) * product


def _shape(computation: Computation, name: str) -> tuple[int, ...]:
    instruction = computation.by_name.get(name)
    found = arrays(instruction.result) if instruction else ()
    return found[0].shape if found else ()
