"""The one mesh, `(data, fsdp, tensor)`, and where batches lie on it."""

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array
from ml_collections import ConfigDict

from can_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# The axes over which the rows of a batch are split. Parameters sharded over `fsdp` are gathered
# where they are used, so `fsdp` devices work on different rows, as `data` devices do.
BATCH_AXES = ("data", "fsdp")


def mesh_shape(config: ConfigDict, devices: int) -> tuple[int, int, int]:
    """The mesh of ``config.mesh`` on so many devices; one axis may be -1, all that are left.

    Raises:
        UserError: the axes do not multiply to the number of devices.
    """
    shape = [config[axis] for axis in AXES]
    wanted = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    if shape.count(-1) > 1 or any(size == 0 or size < -1 for size in shape):
        raise UserError(f"{wanted}: each axis is at least 1, and at most one of them is -1")
    known = math.prod(size for size in shape if size != -1)
    shape = [devices // known if size == -1 else size for size in shape]
    if math.prod(shape) != devices:
        raise UserError(f"{wanted} does not fit {devices} devices: the product must be {devices}")
    return shape[0], shape[1], shape[2]


def make_mesh(config: ConfigDict, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of ``config.mesh`` over all devices of all processes, or over ``devices``."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        mesh_shape(config, len(devices)), AXES, (AxisType.Auto,) * len(AXES), devices=devices
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """A batch, split along its first axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def pin_rows(x: Array) -> Array:
    """Keep the rows of activations on their devices: the first axis split, the others whole.

    Without pins at block borders the compiler may choose to replicate activations. Outside a
    `jax.set_mesh` context this does nothing.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


def replicate(x: Array) -> Array:
    """Give every device all of an array. Outside a `jax.set_mesh` context this does nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def row_shards() -> int:
    """Into how many parts `pin_rows` splits; 1 outside a `jax.set_mesh` context."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else batch_shards(mesh)


def to_global(sharding: NamedSharding, local: Any) -> Array:
    """A global array of which this process holds the given rows."""
    return jax.make_array_from_process_local_data(sharding, local)
