"""The device mesh `(data, fsdp, tensor)`, and the shardings of batches over it."""

import functools
import math
from typing import Any

import jax
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array
from ml_collections import ConfigDict

from can_jax.utils.errors import UserError
from can_jax.utils.extras import unused_accelerator

AXES = ("data", "fsdp", "tensor")

# The axes over which the rows of a batch are split. Parameters sharded over `fsdp` are gathered
# where they are used, so devices along `fsdp` compute different rows, like devices along `data`.
BATCH_AXES = ("data", "fsdp")


def mesh_shape(config: ConfigDict, devices: int) -> tuple[int, int, int]:
    """Return the sizes of the mesh axes `(data, fsdp, tensor)` on a number of devices.

    Args:
        config: The block ``config.mesh``. One axis may be -1, which stands for all remaining
            devices.
        devices: The number of devices over which the mesh is laid out.

    Raises:
        UserError: An axis size is invalid, or the product of the sizes is not ``devices``.
    """
    shape = [config[axis] for axis in AXES]
    wanted = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    if shape.count(-1) > 1 or any(size == 0 or size < -1 for size in shape):
        raise UserError(
            f"{wanted}: set each axis to 1 or more; one axis may be -1 for all remaining devices"
        )
    fixed = math.prod(size for size in shape if size != -1)
    data, fsdp, tensor = (devices // fixed if size == -1 else size for size in shape)
    if data * fsdp * tensor != devices:
        rest = " after -1 is replaced by a whole number" if -1 in shape else ""
        raise UserError(
            f"{wanted} does not fit {devices} devices: the product must be {devices}{rest}"
        )
    return data, fsdp, tensor


def make_mesh(config: ConfigDict, devices: list[jax.Device] | None = None) -> Mesh:
    """Build the device mesh that ``config.mesh`` describes.

    The devices are ordered by `jax.experimental.mesh_utils` to suit the physical network. If the
    devices form several TPU slices, `slice_shape` decides which mesh axes cross the slower links
    between slices.

    Args:
        config: The block ``config.mesh``.
        devices: The devices of the mesh; by default all devices of all processes.

    Raises:
        UserError: The mesh does not fit the number of devices or of TPU slices.
    """
    if devices is None:
        devices = jax.devices()
        warn_of_unused_accelerator()
    shape = mesh_shape(config, len(devices))
    slices = len({getattr(device, "slice_index", None) for device in devices})
    options: dict[str, Any] = {"devices": devices, "allow_split_physical_axes": True}
    if slices > 1:
        across = slice_shape(shape, slices)
        inside = [size // parts for size, parts in zip(shape, across, strict=True)]
        grid = mesh_utils.create_hybrid_device_mesh(inside, across, **options)
    else:
        grid = mesh_utils.create_device_mesh(shape, **options)
    return Mesh(grid, AXES, (AxisType.Auto,) * len(AXES))


def selected_platforms() -> str | None:
    """Return JAX's option ``jax_platforms``: a comma-separated list, or None if not set."""
    selected: str | None = jax.config.jax_platforms  # type: ignore[attr-defined, unused-ignore]
    return selected


@functools.cache
def warn_of_unused_accelerator() -> None:
    """Log a warning once if JAX runs on the CPU although the machine has an accelerator."""
    if jax.default_backend() != "cpu":
        return
    if line := unused_accelerator(selected_platforms()):
        logging.warning("%s", line)


def slice_shape(shape: tuple[int, int, int], slices: int) -> tuple[int, int, int]:
    """Return the number of TPU slices along each axis of the mesh.

    A slice is a group of TPU chips with fast links. As many slices as possible are placed along the
    axis `data`, across which a step communicates only gradients. Slices that do not fit along
    `data` are placed along `fsdp`, across which a step also communicates parameters.

    Args:
        shape: The sizes of the mesh axes `(data, fsdp, tensor)`.
        slices: The number of TPU slices, at least 1.

    Raises:
        UserError: The slices cannot be placed along `data` and `fsdp` alone; `tensor` would have to
            cross slow links.
    """
    data, fsdp, _ = shape
    across = math.gcd(data, slices)
    rest = slices // across
    if fsdp % rest:
        raise UserError(
            f"mesh.data={data}, mesh.fsdp={fsdp} cannot be divided over {slices} slices; set "
            f"mesh.data to a multiple of {slices}"
        )
    return across, rest, 1


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its first axis is split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a replicated array, which every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Return the number of parts into which a mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def whole_batch(rows: int, mesh: Mesh) -> int:
    """Return the smallest multiple of `batch_shards` that is at least ``rows``."""
    shards = batch_shards(mesh)
    return -(-rows // shards) * shards


def constrain_batch_sharding(x: Array) -> Array:
    """Constrain an array to the batch sharding, in which only the first axis is split.

    Without batch-sharding constraints between blocks of a transformer, the compiler may replicate
    activations. Outside a `jax.set_mesh` context the array is returned unchanged.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


def replicate(x: Array) -> Array:
    """Constrain an array to be replicated, or return it unchanged outside a `jax.set_mesh`
    context."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def row_shards() -> int:
    """Return the number of parts into which the mesh of `jax.set_mesh` splits a batch; 1 without a
    mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else batch_shards(mesh)


def axis_size(name: str) -> int:
    """Return the size of an axis of the mesh of `jax.set_mesh`; 1 without a mesh."""
    return int(jax.sharding.get_abstract_mesh().shape.get(name, 1))


def platform() -> str:
    """Return the platform for which JAX compiles: `cpu`, `gpu` or `tpu`.

    JAX compiles for the platform of the mesh that `jax.set_mesh` has set. If no mesh is set, JAX
    compiles for the default backend.
    """
    device = _abstract_device()
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def device_kind() -> str:
    """Return the kind of device for which JAX compiles, such as `NVIDIA H100 80GB HBM3`."""
    device = _abstract_device()
    return str(jax.devices()[0].device_kind if device is None else device.device_kind)


def _abstract_device() -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh.abstract_device
