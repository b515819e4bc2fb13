"""Topologies of devices that are not attached.

The TPU compiler describes the devices of TPU slices, and the GPU compiler describes GPUs. If the
GPU compiler is not available, the step is compiled for CPU devices instead of GPUs.
"""

import contextlib
import dataclasses
import difflib
import functools
import math
import os
import re
from collections.abc import Collection, Iterator
from typing import Any

import jax
from jax.experimental import topologies
from jax.extend.backend import clear_backends

from can_jax.distributed.hardware import Chip, chip_of, peak_flops
from can_jax.distributed.runtime import ABSENT_TPU, spare_absent_tpu
from can_jax.plan.gpus import GPUS, SKIP_CHECK, XLA_FLAGS, compiler_devices
from can_jax.utils.environment import restored_environment
from can_jax.utils.errors import UserError, one_line
from can_jax.utils.jax_config import jax_config

# For each common name, the name and options of JAX's TPU compiler.
TPUS = {
    "v3": ("v3", {}),
    "v4": ("v4", {"chip_config_name": "megacore"}),  # One device has both cores.
    "v5e": ("v5e", {}),
    "v5p": ("v5p", {}),
    "v6e": ("v6e", {}),
}
# The number of axes of a slice's grid, and the largest number of its chips.
GRIDS = {"v3": (2, 1024), "v4": (3, 4096), "v5e": (2, 256), "v5p": (3, 8960), "v6e": (2, 256)}
LARGEST = 2**14  # devices that the planner can describe in a few seconds
CPU_DEVICES = "jax_num_cpu_devices"
EXAMPLES = "v5e:16x16, v4:4x4x4, h100:8x4 (GPUs per host x hosts) or cpu:8"


@dataclasses.dataclass(frozen=True)
class Topology:
    """The devices and networks for which a run is planned.

    Attributes:
        name: The name that the user gave, such as ``v5e:16x16``.
        devices: The JAX devices for which the step is compiled.
        chip: The speed, memory and bandwidths of each device.
        shape: The shape of a TPU slice's torus. For GPUs, the shape is the number of GPUs per host
            and the number of hosts.
        slices: The number of TPU slices, which are connected by slower links.
        exact: Whether the step is compiled for the real kind of device instead of CPU devices.
        hosts: Whether the fast network ends at the boundary of a host, as for GPUs.
        stand_in: The remedy for a missing GPU compiler, if CPU devices replace the GPUs; else
            empty.
    """

    name: str
    devices: list[Any]
    chip: Chip
    shape: tuple[int, ...]
    slices: int
    exact: bool
    hosts: bool = False
    stand_in: str = ""

    @property
    def fast_devices(self) -> int:
        """The number of devices that a fast network connects: those of a host or a TPU slice."""
        if self.hosts or not self.exact:
            return self.shape[0]
        return len(self.devices) // self.slices

    @functools.cached_property
    def _positions(self) -> dict[Any, int]:
        """The position of each device in ``devices``."""
        return {device: position for position, device in enumerate(self.devices)}

    def _part(self, device: Any) -> int:
        """Return the number of the TPU slice or the host to which a device belongs."""
        if self.exact and not self.hosts:
            return getattr(device, "slice_index", 0)
        return self._positions[device] // self.fast_devices

    def bandwidth(self, devices: int, members: Collection[Any] = ()) -> float:
        """Return the bandwidth in bytes/s of each device in a collective operation.

        On a TPU torus, a collective uses the smallest number of axes that connect its devices. A
        collective across TPU slices, or across hosts with GPUs, is limited by the network between
        them.

        Args:
            devices: The number of devices in the group that communicates.
            members: The devices of the group. Without ``members``, the group is assumed to be on as
                few hosts or slices as possible.
        """
        assert self.chip.link is not None
        assert self.chip.network is not None
        if devices > self.fast_devices or len(set(map(self._part, members))) > 1:
            return self.chip.network
        if self.hosts or not self.exact:
            return self.chip.link
        reached, axes = 1, 0
        for size in sorted(self.shape, reverse=True):
            if reached < devices:
                reached, axes = reached * size, axes + 1
        return self.chip.link * max(axes, 1)


@contextlib.contextmanager
def planning() -> Iterator[None]:
    """Let JAX compile for devices that are not attached, and restore JAX's settings afterwards.

    Inside the context, JAX uses only the CPU. The compilation cache is disabled, since it cannot
    load programs for devices that are not attached. If the process has not used JAX before, JAX
    drops its devices and compiled programs when the context ends. After the context, the process
    can use the attached devices.
    """
    unused, devices = not _is_jax_used(), getattr(jax.config, CPU_DEVICES)
    with (
        restored_environment(*ABSENT_TPU, SKIP_CHECK, XLA_FLAGS),
        jax_config(jax_platforms="cpu", jax_enable_compilation_cache=False),
    ):
        try:
            yield
        finally:
            if unused:
                clear_backends()
                jax.config.update(CPU_DEVICES, devices)


def _is_jax_used() -> bool:
    """Return whether JAX has initialized its devices.

    After the initialization, JAX rejects a new number of CPU devices.
    """
    devices = getattr(jax.config, CPU_DEVICES)
    try:
        jax.config.update(CPU_DEVICES, devices + 1)
    except RuntimeError:
        return True
    jax.config.update(CPU_DEVICES, devices)
    return False


def open_topology(name: str, slices: int = 1) -> Topology:
    """Return the topology with a name such as `v5e:16x16`.

    Call this function within `planning`.

    Args:
        name: The kind of device and the shape, such as `v5e:16x16` or `h100:8x4`.
        slices: The number of TPU slices, each with the shape in ``name``. For GPUs, the number of
            hosts is multiplied by ``slices``.

    Raises:
        UserError: The name is invalid, or JAX is already initialized with another number of CPU
            devices than needed. The TPU compiler is not installed, or refuses the topology.
    """
    parsed = re.fullmatch(r"([a-z0-9-]+):(\d+(?:x\d+)*)", name)
    if parsed is None:
        raise UserError(f"--topology={name!r} is not a topology: write it like {EXAMPLES}")
    kind, shape = parsed[1], tuple(int(size) for size in parsed[2].split("x"))
    if slices < 1 or 0 in shape:
        raise UserError(
            f"--topology={name}, --slices={slices}: the numbers in both must be at least 1"
        )
    if (count := math.prod(shape) * slices) > LARGEST:
        raise UserError(f"--topology={name} has {count:,} devices; give at most {LARGEST:,}")
    if kind in TPUS:
        return _tpu(name, kind, shape, slices)
    if kind in GPUS:
        return _gpu(name, kind, shape, slices)
    if kind == "cpu":
        _make_devices(math.prod(shape) * slices)
        return Topology(name, jax.devices(), _this_cpu(), shape, slices, exact=False)
    near = difflib.get_close_matches(kind, [*TPUS, *GPUS, "cpu"], n=1, cutoff=0.0)[0]
    raise UserError(
        f"--topology={name}: unknown device {kind!r}; did you mean {near}? Examples are {EXAMPLES}"
    )


def _make_devices(count: int) -> None:
    """Set the number of JAX's CPU devices.

    Raises:
        UserError: JAX is already initialized with a number of CPU devices other than ``count``.
    """
    try:
        jax.config.update(CPU_DEVICES, count)
    except RuntimeError as error:
        raise UserError(
            "this process has used JAX already, so its devices cannot change: run the command in a "
            "new process, or call can_jax.plan_run, which starts one"
        ) from error


def _this_cpu() -> Chip:
    """Return the properties of a CPU device: measured FLOP/s, share of the main memory, and assumed
    link bandwidths."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.device_count()
    return Chip("CPU", peak_flops("float32"), memory, 10e9, 1e9)


def _gpu(name: str, kind: str, shape: tuple[int, ...], slices: int) -> Topology:
    chip, hosts = chip_of(GPUS[kind].kind), math.prod(shape[1:]) * slices
    assert chip is not None
    devices, reason = compiler_devices(kind, hosts, shape[0])
    if devices is not None:
        return Topology(name, devices, chip, shape, slices, exact=True, hosts=True)
    _make_devices(math.prod(shape) * slices)
    return Topology(
        name, jax.devices(), chip, shape, slices, exact=False, hosts=True, stand_in=reason
    )


def _tpu(name: str, kind: str, shape: tuple[int, ...], slices: int) -> Topology:
    spare_absent_tpu()
    axes, largest = GRIDS[kind]
    if not 2 <= len(shape) <= axes:
        raise UserError(
            f"--topology={name}: give the number of chips of a slice along each of "
            f"{'two' if axes == 2 else 'two or three'} axes, such as {kind}:{'x'.join('2' * axes)}"
        )
    if math.prod(shape) > largest:
        raise UserError(
            f"--topology={name}: a slice of {kind} has at most {largest:,} chips; give more slices "
            "by --slices=N"
        )
    compiler_name, options = TPUS[kind]
    arguments: dict[str, Any] = dict(options)
    if math.prod(shape) < 4:  # Smaller than a host.
        arguments["chips_per_host_bounds"] = (*shape, 1, 1)[:3]
    if slices > 1:
        arguments["num_slices"] = slices
    layout = "x".join(map(str, shape))
    try:
        description = topologies.get_topology_desc(f"{compiler_name}:{layout}", "tpu", **arguments)
    except RuntimeError as error:
        if "not installed" in str(error):
            raise UserError(
                f"--topology={name}: the TPU compiler is not installed: pip install 'jax[tpu]' "
                "(for Linux on x86-64; no TPU is required)"
            ) from error
        raise UserError(f"--topology={name}: {one_line(error)[:200]}") from error
    devices: list[Any] = list(description.devices)
    chip = chip_of(devices[0].device_kind)
    assert chip is not None
    return Topology(name, devices, chip, shape, slices, exact=True)
