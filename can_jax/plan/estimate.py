"""One configuration on one topology: compiled ahead of time, weighed and timed."""

import dataclasses
import math
import re
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from can_jax.data.pipeline.batch import batch_shapes
from can_jax.distributed.mesh import batch_sharding, batch_shards, make_mesh
from can_jax.models.can import Size, encoder_size
from can_jax.models.flops import train_flops_per_image, transformer_flops
from can_jax.models.masking import visible_count
from can_jax.plan.hlo import Collective, collectives
from can_jax.plan.topology import Topology
from can_jax.train.losses import grid_of, heads
from can_jax.train.step import abstract_state, compile_train_step, make_step
from can_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
        parameters, optimizer: their shards.
        temporaries: activations, gradients, and all else that a step makes room for.
        total: all of it, the batch and the program included.
        limit: what there is.
    """

    parameters: int
    optimizer: int
    temporaries: int
    total: int
    limit: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a run before it is paid for.

    Attributes:
        fits: whether the memory is enough.
        mesh: devices along each axis.
        parameters: how many there are.
        memory: of one device.
        flops_per_image: analytic, of a step.
        recomputed_flops_per_image: what is computed twice to save memory.
        collectives: of one step; empty where it does not fit, since then there is no program.
        compile_seconds: here.
        compute_seconds, communication_seconds: of a step, estimated; see `compute_seconds` and
            `communication_seconds`.
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

    @property
    def step_seconds(self) -> float:
        """Of one step, as if nothing were sent while computing: on the safe side."""
        return self.compute_seconds + self.communication_seconds


def make_plan(config: ConfigDict, topology: Topology, mfu: float) -> Plan:
    """Compile the train step for devices that are not there.

    Args:
        config: resolved.
        topology: the devices.
        mfu: the share of the peak at which the devices are assumed to compute.

    Raises:
        UserError: the mesh does not fit the devices, or the batch not the mesh.
    """
    mesh = make_mesh(config.mesh, topology.devices)
    parts = batch_shards(mesh) * config.accumulation.microbatches
    if config.batch_size % parts:
        raise UserError(
            f"config.batch_size={config.batch_size} does not divide into {parts} parts: "
            f"{batch_shards(mesh)} devices of mesh.data x mesh.fsdp, "
            f"{config.accumulation.microbatches} microbatches"
        )
    step = make_step(config, lambda _: 1e-3)
    state = abstract_state(step, mesh)
    batch = batch_shapes(config, batch_sharding(mesh))
    started = time.perf_counter()
    moved: list[Collective] = []
    fits = True
    try:
        compiled: Any = compile_train_step(step, state, batch, mesh)
        stats = compiled.memory_analysis()
        temporaries = stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
        total = (
            temporaries
            + stats.argument_size_in_bytes
            + stats.output_size_in_bytes
            - stats.alias_size_in_bytes
        )
        moved = collectives(compiled.as_text(), mesh)
    except jax.errors.JaxRuntimeError as error:
        fits = False
        temporaries = needed_temporaries(error)
        total = temporaries + bytes_on_device((state, batch))
    seconds = time.perf_counter() - started
    limit = topology.chip.memory
    assert limit is not None
    return Plan(
        fits=fits and total <= limit,
        mesh=dict(mesh.shape),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.parameters)),
        memory=Memory(
            bytes_on_device(state.parameters),
            bytes_on_device(state.optimizer),
            temporaries,
            total,
            limit,
        ),
        flops_per_image=train_flops_per_image(config, heads(config)),
        recomputed_flops_per_image=recomputed_flops(config),
        collectives=moved,
        compile_seconds=seconds,
        compute_seconds=compute_seconds(config, topology, mfu),
        communication_seconds=communication_seconds(moved, topology),
    )


def needed_temporaries(error: Exception) -> int:
    """Bytes that the compiler wanted and did not get.

    Raises:
        Exception: ``error`` itself, if it is about something else.
    """
    wanted = re.search(r"(?:required|Used|used)[^()]*?\(?([\d.]+)([KMGT])", str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or wanted is None:
        raise error
    return int(float(wanted[1]) * 2 ** (10 * (1 + "KMGT".index(wanted[2]))))


def bytes_on_device(tree: Any) -> int:
    """Of a tree of shapes with shardings, the part that lies on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def recomputed_flops(config: ConfigDict) -> int:
    """FLOPs of an image that are computed a second time in a step: those that `model.remat` does
    not keep, and the encoder's where microbatches keep all negatives."""
    model, views = config.model, config.augment.views
    patches = math.prod(grid_of(config))
    visible = visible_count(patches, model.mask_ratio)
    encoder = encoder_size(model)
    blocks = [(encoder, visible + 1)]
    if "prediction" in heads(config):
        blocks.append((Size(**model.decoder), patches + 1))
    again = 0
    for size, tokens in blocks:
        logits = size.depth * 2 * tokens**2 * size.width
        # The backward pass does not ask for the last product of a block.
        last = size.depth * 8 * tokens * size.width**2
        again += {
            "none": 0,
            "dots": logits,
            "dots_no_batch": 2 * logits,
            "full": transformer_flops(size, tokens) - last,
        }[model.remat]
    settings = config.accumulation
    if (
        settings.microbatches > 1
        and settings.negatives == "batch"
        and config.objective.contrastive.weight
    ):
        again += transformer_flops(encoder, visible + 1)
    return views * again


def compute_seconds(config: ConfigDict, topology: Topology, mfu: float) -> float:
    """All FLOPs of a step, recomputed ones too, at the assumed share of the peak."""
    flops = train_flops_per_image(config, heads(config)) + recomputed_flops(config)
    rate = len(topology.devices) * topology.chip.peak_flops * mfu
    return config.batch_size * flops / rate


def communication_seconds(moved: list[Collective], topology: Topology) -> float:
    """What the collectives of a step send, at the bandwidth of the network that they need."""
    return sum(
        collective.times * collective.moved / topology.bandwidth(collective.devices)
        for collective in moved
    )
