"""The device mesh `(data, fsdp, tensor)`, and the shardings of batches on it."""

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
# where they are used, so `fsdp` devices compute different rows, as `data` devices do.
BATCH_AXES = ("data", "fsdp")


def mesh_shape(config: ConfigDict, devices: int) -> tuple[int, int, int]:
    """Return the shape of the mesh of ``config.mesh`` on a number of devices.

    Args:
        config: The block ``config.mesh``. One axis may be -1 and takes the remaining devices.
        devices: The number of devices.

    Raises:
        UserError: The product of the axes is not the number of devices.
    """
    shape = [config[axis] for axis in AXES]
    wanted = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    if shape.count(-1) > 1 or any(size == 0 or size < -1 for size in shape):
        raise UserError(f"{wanted}: set each axis to 1 or more, or one of them to -1 for the rest")
    fixed = math.prod(size for size in shape if size != -1)
    shape = [devices // fixed if size == -1 else size for size in shape]
    if math.prod(shape) != devices:
        raise UserError(f"{wanted} does not fit {devices} devices: the product must be {devices}")
    return shape[0], shape[1], shape[2]


def make_mesh(config: ConfigDict, devices: list[jax.Device] | None = None) -> Mesh:
    """Build the mesh of ``config.mesh``.

    Neighbors in the mesh are neighbors in the chips' network. With several slices, which are
    connected by slow links, `slice_shape` decides which axes cross these links.

    Args:
        config: The block ``config.mesh``.
        devices: The devices of the mesh; all devices of all processes by default.
    """
    if devices is None:
        devices = jax.devices()
        warn_of_unused_accelerator()
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


def selected_platforms() -> str | None:
    """Return the platforms that the user has selected, with commas between, or None."""
    selected: str | None = jax.config.jax_platforms  # type: ignore[attr-defined]
    return selected


@functools.cache
def warn_of_unused_accelerator() -> None:
    """Log a warning, once, if JAX runs on the CPU of a machine that has an accelerator."""
    if jax.default_backend() != "cpu":
        return
    if line := unused_accelerator(selected_platforms()):
        logging.warning("%s", line)


def slice_shape(shape: tuple[int, int, int], slices: int) -> tuple[int, int, int]:
    """Return the shape in which slices form the mesh.

    The axis `data` is divided among as many slices as possible, since its only traffic is the
    gradients of a step. The axis `fsdp`, which also sends the parameters, is divided among the
    remaining slices.

    Args:
        shape: The shape of the mesh.
        slices: The number of slices.

    Raises:
        UserError: The slices do not divide `data` and `fsdp`, so that `tensor` would cross slow
            links.
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
    """Return the sharding of a batch, which is split along its first axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Return the number of parts into which a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def constrain_batch_sharding(x: Array) -> Array:
    """Constrain activations to the batch sharding: the first axis split, the others whole.

    Without constraints between blocks the compiler may choose to replicate activations. Outside a
    `jax.set_mesh` context this does nothing.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


def replicate(x: Array) -> Array:
    """Constrain an array to be replicated. Outside a `jax.set_mesh` context this does nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def row_shards() -> int:
    """Return how many parts `constrain_batch_sharding` makes; 1 without `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else batch_shards(mesh)


def axis_size(name: str) -> int:
    """Return the number of devices along an axis of the mesh; 1 without `jax.set_mesh`."""
    return int(jax.sharding.get_abstract_mesh().shape.get(name, 1))


def platform() -> str:
    """Return the platform that is compiled for: `cpu`, `gpu` or `tpu`.

    That is the platform of the mesh of `jax.set_mesh`, or else of the default backend.
    """
    device = _abstract_device()
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def device_kind() -> str:
    """Return the kind of device that is compiled for, such as `NVIDIA H100 80GB HBM3`."""
    device = _abstract_device()
    return str(jax.devices()[0].device_kind if device is None else device.device_kind)


def _abstract_device() -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh.abstract_device
