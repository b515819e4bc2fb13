"""Topologies of devices that are not attached.

TPU slices come from the TPU compiler, GPUs from the GPU compiler. Where that is not installed, CPU
devices stand in for GPUs.
"""

import dataclasses
import difflib
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from can_jax.distributed.hardware import Chip, chip_of, peak_flops
from can_jax.distributed.runtime import spare_absent_tpu
from can_jax.plan.gpus import GPUS, compiler_devices
from can_jax.utils.errors import UserError, one_line

# For each common name, the name and options of JAX's TPU compiler.
TPUS = {
    "v3": ("v3", {}),
    "v4": ("v4", {"chip_config_name": "megacore"}),  # One device has both cores.
    "v5e": ("v5e", {}),
    "v5p": ("v5p", {}),
    "v6e": ("v6e", {}),
}
MEASURE = "v5e:16x16, v4:4x4x4, h100:8x4 (GPUs of a host x hosts) or cpu:8"


@dataclasses.dataclass(frozen=True)
class Topology:
    """The devices and networks that a run is planned for.

    Attributes:
        name: The name that the user gave, such as ``v5e:16x16``.
        devices: The devices to compile for.
        chip: The capabilities of each device.
        shape: The shape of a slice's network. For GPUs, the number per host and the number of
            hosts.
        slices: The number of slices, which slow links connect.
        exact: Whether the devices are of the real kind, instead of CPU stand-ins.
        hosts: Whether the fast network ends at a host, as that of GPUs does.
        stand_in: The reason why the devices are not of the real kind; empty if they are.
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
        """The number of devices that one fast network connects."""
        if self.hosts or not self.exact:
            return self.shape[0]
        return len(self.devices) // self.slices

    def bandwidth(self, devices: int) -> float:
        """Return the bandwidth in bytes/s of each device in a group that communicates.

        On a torus, a collective uses as many axes as are needed to reach that many chips. Beyond a
        slice, or a host of GPUs, the slower network bounds it.

        Args:
            devices: The number of devices in the group.
        """
        assert self.chip.link is not None
        assert self.chip.network is not None
        if devices > self.fast_devices:
            return self.chip.network
        if self.hosts or not self.exact:
            return self.chip.link
        reached, axes = 1, 0
        for size in sorted(self.shape, reverse=True):
            if reached < devices:
                reached, axes = reached * size, axes + 1
        return self.chip.link * max(axes, 1)


def open_topology(name: str, slices: int = 1) -> Topology:
    """Return the topology of a name such as `v5e:16x16`.

    The function selects the CPU platform, and must be called before JAX initializes a backend.

    Raises:
        UserError: The name is unknown, or its compiler is not installed.
    """
    parsed = re.fullmatch(r"([a-z0-9-]+):(\d+(?:x\d+)*)", name)
    if parsed is None:
        raise UserError(f"--topology={name!r}: write it like {MEASURE}")
    kind, shape = parsed[1], tuple(int(size) for size in parsed[2].split("x"))
    if slices < 1 or 0 in shape:
        raise UserError(f"--topology={name}, --slices={slices}: at least 1 of each")
    jax.config.update("jax_platforms", "cpu")  # Programs are compiled but never run.
    if kind in TPUS:
        return _tpu(name, kind, shape, slices)
    if kind in GPUS:
        return _gpu(name, kind, shape, slices)
    if kind == "cpu":
        jax.config.update("jax_num_cpu_devices", math.prod(shape) * slices)
        return Topology(name, jax.devices(), _this_cpu(), shape, slices, exact=False)
    near = difflib.get_close_matches(kind, [*TPUS, *GPUS, "cpu"], n=1, cutoff=0.0)[0]
    raise UserError(
        f"--topology={name}: no {kind!r} is known; did you mean {near}, as in {MEASURE}?"
    )


def _this_cpu() -> Chip:
    """Return the chip of a CPU device: an equal share of the memory, and guessed links."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.device_count()
    return Chip("CPU", peak_flops("float32")[0], memory, 10e9, 1e9)


def _gpu(name: str, kind: str, shape: tuple[int, ...], slices: int) -> Topology:
    chip, hosts = chip_of(GPUS[kind].kind), math.prod(shape[1:]) * slices
    assert chip is not None
    devices, reason = compiler_devices(kind, hosts, shape[0])
    if devices is not None:
        return Topology(name, devices, chip, shape, slices, exact=True, hosts=True)
    jax.config.update("jax_num_cpu_devices", math.prod(shape) * slices)
    return Topology(
        name, jax.devices(), chip, shape, slices, exact=False, hosts=True, stand_in=reason
    )


def _tpu(name: str, kind: str, shape: tuple[int, ...], slices: int) -> Topology:
    spare_absent_tpu()
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
                f"--topology={name}: the compiler for TPUs is not installed; it needs no TPU: "
                "pip install 'jax[tpu]' (Linux, x86-64)"
            ) from error
        raise UserError(f"--topology={name}: {one_line(error)[:200]}") from error
    devices: list[Any] = list(description.devices)
    chip = chip_of(devices[0].device_kind)
    assert chip is not None
    return Topology(name, devices, chip, shape, slices, exact=True)
