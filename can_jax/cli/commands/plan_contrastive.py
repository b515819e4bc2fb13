"""`python -m can_jax.plan.contrastive [--topology=v5e:16x16]`

Prints the memory per device of the contrastive loss and its gradient, for several batch sizes. The
loss is compiled both with blocks of keys, as in the train step, and with the full similarity
matrix.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.table import Table

from can_jax.cli.command import Command
from can_jax.distributed.mesh import batch_sharding, make_mesh
from can_jax.monitoring.console import plain_console
from can_jax.objectives.base import Arrays
from can_jax.objectives.contrastive import loss
from can_jax.objectives.rows import block_size
from can_jax.plan.estimate import needed_bytes
from can_jax.plan.topology import Topology, open_topology, planning

COMMAND = Command(__doc__)
FLAGS = COMMAND.flags
_TOPOLOGY = FLAGS.text("topology", "v5e:16x16", "The devices to plan for, such as v5e:16x16.")
_WIDTH = FLAGS.integer("width", 128, "The width of the embeddings.", 1)
IMAGES = (4096, 16384, 65536, 262144)


def loss_bytes(mesh: Mesh, images: int, width: int, block: int) -> int:
    """Return the bytes per device of the temporary buffers for the loss and its gradient.

    Args:
        mesh: The device mesh over which the images are split.
        images: The number of images in the global batch, each with two views.
        width: The width of the projected embeddings.
        block: The number of keys per block; all embeddings are compared with one block at a time.
    """

    def value(projection: jax.Array) -> jax.Array:
        arrays = Arrays(pooled=projection)
        return loss(
            arrays, lambda rows, train: rows, 0.1, directions="mean", supervised=False, block=block
        )[0]

    sharding = batch_sharding(mesh)
    projection = jax.ShapeDtypeStruct((images, 2, width), jnp.float32, sharding=sharding)
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(value), out_shardings=sharding).lower(projection)
        try:
            compiled: Any = lowered.compile()
            return compiled.memory_analysis().temp_size_in_bytes
        except jax.errors.JaxRuntimeError as error:
            return needed_bytes(error)


@COMMAND.runs
def main() -> None:
    """Compile the loss for several batch sizes, and print a table of its memory."""
    with planning():
        table = memory_table(open_topology(_TOPOLOGY.value))
    plain_console(width=100).print(table)


def memory_table(topology: Topology) -> Table:
    """Return a table of the memory of the loss on each device, for several batch sizes."""
    mesh = make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}), topology.devices)
    table = Table(
        "images", "rows a device", "keys a block", "in blocks", "at once",
        title=f"Memory of the contrastive loss on each device of {topology.name}",
    )  # fmt: skip
    for images in IMAGES:
        rows = 2 * images
        block = block_size(rows, mesh.size)
        sizes = (loss_bytes(mesh, images, _WIDTH.value, keys) for keys in (block, rows))
        table.add_row(
            f"{images:,}", f"{rows // mesh.size:,}", f"{block:,}",
            *(f"{size / 2**20:,.0f} MiB" for size in sizes),
        )  # fmt: skip
    return table
