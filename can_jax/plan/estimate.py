"""The memory and time of one configuration on one topology, from ahead-of-time compilation."""

import dataclasses
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from can_jax.data.pipeline.batch import batch_shapes
from can_jax.distributed.mesh import batch_sharding, batch_shards, make_mesh
from can_jax.models.backbones import Size
from can_jax.objectives import active
from can_jax.plan.charges import Estimate
from can_jax.plan.clocks import Calibration, calibration_of, clock_of
from can_jax.plan.cycles import estimate_step
from can_jax.plan.hlo import Collective, collectives
from can_jax.plan.program import Program
from can_jax.plan.topology import Topology
from can_jax.train.flops import encoder_flops, train_flops_per_image, transformers
from can_jax.train.step import Steps, abstract_state, compile_train_step, make_step
from can_jax.utils.errors import UserError, reason_of
from can_jax.utils.files import replace_text
from can_jax.utils.progress import phase


@dataclasses.dataclass(frozen=True)
class Memory:
    """The memory use of one device in bytes.

    Attributes:
        parameters, optimizer: The bytes of one device's shards of the parameters, and of its shards
            of the optimizer state.
        temporaries: The bytes of the activations, gradients and other buffers of a step, and of the
            machine code.
        total: The bytes that a step needs in total, including the train state and the batch.
        limit: The bytes of device memory that a program may use.
    """

    parameters: int
    optimizer: int
    temporaries: int
    total: int
    limit: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The estimated memory, traffic and time of a training run.

    Attributes:
        fits: Whether a step fits into the memory of a device.
        mesh: The number of devices along each mesh axis.
        parameters: The number of parameters of the model.
        memory: The memory use of one device.
        flops_per_image: The FLOPs per image per step, computed from the layer sizes, without
            recomputed FLOPs.
        recomputed_flops_per_image: The FLOPs per image per step that are recomputed to save memory.
        collectives: The collectives of one step; empty if compilation ran out of memory.
        compile_seconds: The compile time on this machine, in seconds.
        compute_seconds: The time of a step without collectives, in seconds. Without an
            ``estimate``, the FLOPs at the assumed utilization give ``compute_seconds``.
        communication_seconds: The time of all collectives in seconds, if none of them overlaps
            computation.
        estimate: The estimated time of each instruction, from the TPU compiler's cycles or from a
            GPU roofline. ``estimate`` is None for CPU devices, or if compilation ran out of memory.
        calibration: The measured speed of steps relative to estimates; None without an estimate.
        compiled: Whether compilation succeeded instead of running out of memory.
    """

    fits: bool
    mesh: dict[str, int]
    parameters: int
    memory: Memory
    flops_per_image: int
    recomputed_flops_per_image: int
    collectives: list[Collective]
    compile_seconds: float
    compute_seconds: float
    communication_seconds: float
    estimate: Estimate | None = None
    calibration: Calibration | None = None
    compiled: bool = True

    @property
    def step_seconds(self) -> float:
        """The expected time of a step in seconds.

        The expected time is the estimated time divided by `Calibration.ratio`. Without an estimate,
        the expected time is the sum of `compute_seconds` and `communication_seconds`, which assumes
        no overlap.
        """
        if self.estimate is not None and self.calibration is not None:
            return self.estimate.seconds / self.calibration.ratio
        return self.compute_seconds + self.communication_seconds


ASSUMED_MFU = 0.4  # for devices whose compiler is not installed


@dataclasses.dataclass(frozen=True)
class Work:
    """The kind of train step to plan, as functions that take the configuration.

    Attributes:
        step: A function that returns the train step.
        flops: A function that returns the FLOPs per image per step, without recomputed FLOPs.
        blocks: A function that returns the size and the sequence length of each transformer with a
            backward pass.
    """

    step: Callable[[ConfigDict], Steps]
    flops: Callable[[ConfigDict], int]
    blocks: Callable[[ConfigDict], list[tuple[Size, int]]]


PRETRAINING = Work(
    lambda config: make_step(config, lambda _: 1e-3), train_flops_per_image, transformers
)


def make_plan(
    config: ConfigDict,
    topology: Topology,
    mfu: float,
    dump: Path | None = None,
    work: Work = PRETRAINING,
) -> Plan:
    """Compile the train step for devices that are not attached, and estimate its memory and time.

    Args:
        config: The resolved configuration.
        topology: The devices to compile for.
        mfu: The model FLOPs utilization, above 0 and at most 1, that is assumed if no times can be
            estimated from the program.
        dump: The file to which the text of the compiled program is written, or None.
        work: The kind of train step, by default that of pretraining.

    Raises:
        UserError: The mesh does not match the devices, the batch size is not divisible by shards
            times microbatches, or ``dump`` cannot be written.
    """
    mesh = make_mesh(config.mesh, topology.devices)
    parts = batch_shards(mesh) * config.accumulation.microbatches
    if config.batch_size % parts:
        raise UserError(
            f"config.batch_size={config.batch_size} is not divisible by {parts}: "
            f"{batch_shards(mesh)} devices (mesh.data x mesh.fsdp) times "
            f"{config.accumulation.microbatches} microbatches"
        )
    step = work.step(config)
    state = abstract_state(step, mesh)
    batch = batch_shapes(config, batch_sharding(mesh))
    started = time.perf_counter()
    moved: list[Collective] = []
    estimated: Estimate | None = None
    clock = clock_of(topology.chip) if topology.exact else None
    out_of_memory = False
    try:
        with phase(f"compiling the step for {topology.name}"):
            compiled: Any = compile_train_step(step, state, batch, mesh)
        stats = compiled.memory_analysis()
        temporaries = stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
        total = (
            temporaries
            + stats.argument_size_in_bytes
            + stats.output_size_in_bytes
            - stats.alias_size_in_bytes
        )
        compile_time = time.perf_counter() - started
        text = compiled.as_text()
        if dump is not None:
            write(dump, text)
        program = Program(text)
        moved = collectives(program, mesh)
        if clock is not None:
            estimated = estimate_step(program, mesh, topology, clock)
    except jax.errors.JaxRuntimeError as error:
        out_of_memory = True
        total = needed_bytes(error)
        temporaries = max(0, total - bytes_on_device((state, batch)))
        compile_time = time.perf_counter() - started
    limit = topology.chip.memory
    assert limit is not None
    return Plan(
        fits=not out_of_memory and total <= limit,
        mesh=dict(mesh.shape),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.parameters)),
        memory=Memory(
            bytes_on_device(state.parameters),
            bytes_on_device(state.optimizer),
            temporaries,
            total,
            limit,
        ),
        flops_per_image=work.flops(config),
        recomputed_flops_per_image=recomputed_flops(config, work),
        collectives=moved,
        compile_seconds=compile_time,
        compute_seconds=(
            estimated.computing if estimated else compute_seconds(config, topology, mfu, work)
        ),
        communication_seconds=communication_seconds(moved, topology),
        estimate=estimated,
        calibration=calibration_of(topology.chip) if estimated else None,
        compiled=not out_of_memory,
    )


def write(path: Path, text: str) -> None:
    """Write a text file.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        replace_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {reason_of(error)}") from error


def needed_bytes(error: Exception) -> int:
    """Return the bytes that a program needs, from the compiler's out-of-memory message.

    The message of the TPU compiler calls the needed bytes temporaries, although they include the
    arguments and the outputs.

    Raises:
        Exception: ``error`` itself, unless it is an out-of-memory error that states the bytes.
    """
    match = re.search(r"(?:required|Used|used)[^()]*?\(?([\d.]+)([KMGT])", str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or match is None:
        raise error
    return int(float(match[1]) * 2 ** (10 * (1 + "KMGT".index(match[2]))))


def bytes_on_device(tree: Any) -> int:
    """Return how many bytes of a sharded pytree one device stores."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def recomputed_flops(config: ConfigDict, work: Work = PRETRAINING) -> int:
    """Return the FLOPs per image per step that are recomputed to save memory.

    The backward pass recomputes the matrix products that the remat policy does not store. If
    microbatches share the negatives of the whole batch, the encoder's forward pass is also
    recomputed.
    """
    model, views = config.model, config.augment.views
    blocks = work.blocks(config)
    recomputed = 0
    for size, tokens in blocks:
        logits = size.depth * 2 * tokens**2 * size.width
        # The backward pass does not need the last product of a block.
        last = size.depth * 8 * tokens * size.width**2
        recomputed += {
            "none": 0,
            "dots": logits,
            "dots_no_batch": 2 * logits,
            "full": size.flops(tokens) - last,
        }[model.remat]
    settings = config.accumulation
    related = any(o.relates_rows for o in active(config.objective.to_dict()).values())
    if settings.microbatches > 1 and settings.negatives == "batch" and related:
        recomputed += encoder_flops(config)
    return views * recomputed


def compute_seconds(
    config: ConfigDict, topology: Topology, mfu: float, work: Work = PRETRAINING
) -> float:
    """Return the seconds that the FLOPs of a step, including recomputed FLOPs, take at an assumed
    utilization."""
    flops = work.flops(config) + recomputed_flops(config, work)
    rate = len(topology.devices) * topology.chip.peak_flops * mfu
    return config.batch_size * flops / rate


def communication_seconds(moved: list[Collective], topology: Topology) -> float:
    """Return the total seconds of a step's collectives at the bandwidth of their networks."""
    return sum(
        one.times * one.moved / topology.bandwidth(one.devices, one.members) for one in moved
    )
