"""The one mesh, `(data, fsdp, tensor)`, and where batches lie on it."""

import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array
from ml_collections import ConfigDict

from can_jax.utils.errors import UserError

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
    """The mesh of ``config.mesh`` over all devices of all processes, or over ``devices``.

    Neighbours in the mesh are neighbours on the chips' network. Over several slices, each with fast
    links inside and slow ones to the others, `slice_shape` says which axis crosses the slow ones.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    slices = len({getattr(device, "slice_index", None) for device in devices})
    split: dict[str, Any] = {"devices": devices, "allow_split_physical_axes": True}
    if slices > 1:
        across = slice_shape(shape, slices)
        inside = [size // parts for size, parts in zip(shape, across, strict=True)]
        grid = mesh_utils.create_hybrid_device_mesh(inside, across, **split)
    else:
        grid = mesh_utils.create_device_mesh(shape, **split)
    return Mesh(grid, AXES, (AxisType.Auto,) * len(AXES))


def slice_shape(shape: tuple[int, int, int], slices: int) -> tuple[int, int, int]:
    """How slices form the mesh: over `data` as far as it divides, which sends a step's gradients
    once, and over `fsdp`, which sends the parameters too, for the rest.

    Raises:
        UserError: slices are left, which `tensor` would have to cross.
    """
    data, fsdp, _ = shape
    across = math.gcd(data, slices)
    rest = slices // across
    if fsdp % rest:
        raise UserError(
            f"mesh.data={data}, mesh.fsdp={fsdp} do not divide over {slices} slices; let mesh.data "
            f"be a multiple of {slices}"
        )
    return across, rest, 1


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
