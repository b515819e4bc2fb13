import dataclasses
import subprocess
import sys

import jax
import pytest

from can_jax.distributed.hardware import Chip, chip_of
from can_jax.distributed.mesh import make_mesh
from can_jax.plan.topology import Topology, open_topology
from can_jax.utils.errors import UserError
from tests.helpers.configs import small_config
from tests.helpers.runs import ROOT

UNUSED = """
import os
import jax
from can_jax.plan import topology

topology.peak_flops = lambda dtype: 1e12
for used in (False, True):
    before = dict(jax.config.values), dict(os.environ)
    with topology.planning():
        assert not jax.config.jax_enable_compilation_cache
        try:
            assert len(topology.open_topology("cpu:3").devices) == 3
        except topology.UserError:
            assert used
        topology.spare_absent_tpu()
    assert (dict(jax.config.values), dict(os.environ)) == before
    assert jax.device_count() == 1
"""


@pytest.mark.parametrize(
    ("name", "devices", "kind"),
    [
        ("v3:2x2", 8, "TPU v3"),  # a core is a device
        ("v4:4x4x4", 64, "TPU v4"),
        ("v5e:1x1", 1, "TPU v5 lite"),
        ("v5e:16x16", 256, "TPU v5 lite"),
        ("v5p:4x4x4", 64, "TPU v5"),
        ("v6e:16x16", 256, "TPU v6 lite"),
    ],
)
def test_tpu_slices_are_there_to_be_compiled_for(name, devices, kind):
    topology = open_topology(name)
    assert len(topology.devices) == devices and topology.exact
    assert topology.chip.name == kind and topology.chip.memory > 15 * 2**30


@pytest.mark.parametrize("axes", [{"fsdp": 4}, {"fsdp": 2, "tensor": 2}, {"fsdp": 16}])
def test_mesh_over_slices_keeps_all_but_data_inside(axes):
    topology = open_topology("v5e:4x4", slices=2)
    assert len(topology.devices) == 32
    config = small_config(**{f"mesh__{name}": size for name, size in axes.items()})
    for row in make_mesh(config.mesh, topology.devices).devices:
        assert len({device.slice_index for device in row.flat}) == 1


def test_any_factor_of_a_slice_is_a_mesh():
    devices = open_topology("v4:4x4x4").devices
    for fsdp in (2, 8, 32):
        mesh = make_mesh(small_config(mesh__fsdp=fsdp).mesh, devices)
        assert mesh.shape["fsdp"] == fsdp and mesh.size == 64


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "write it like v5e:16x16"),
        ("v5e:16*16", "write it like"),
        ("v5x:2x2", "unknown device 'v5x'; did you mean v5"),
        ("v5e:3x5", "not divisible"),
        ("v5e:0x2", "at least 1"),
        ("v5e:4", "along each of two axes, such as v5e:2x2"),
        ("v6e:2x2x2", "along each of two axes, such as v6e:2x2"),
        ("v5p:8", "along each of two or three axes, such as v5p:2x2x2"),
        ("v5e:32x32", "at most 256 chips; give more slices by --slices=N"),
        ("h100:8x9999", "79,992 devices; give at most 16,384"),
    ],
)
def test_what_is_no_topology_is_one_line(name, message):
    with pytest.raises(UserError, match="--topology=") as found:
        open_topology(name)
    assert message in str(found.value) and "\n" not in str(found.value)


def test_missing_compiler_is_named(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    with pytest.raises(UserError, match=r"pip install 'jax\[tpu\]'"):
        open_topology("v5e:2x2")


def test_bandwidth_is_that_of_the_network_that_is_needed():
    chip = Chip("x", 1e12, 2**30, link=100.0, network=10.0)
    torus = Topology("v5e:4x8", [None] * 64, chip, (4, 8), slices=2, exact=True)
    assert torus.bandwidth(8) == 100  # one axis
    assert torus.bandwidth(16) == 200  # two
    assert torus.bandwidth(64) == 10  # both slices
    hosts = Topology("h100:8x4", [None] * 32, chip, (8, 4), slices=1, exact=False)
    assert hosts.bandwidth(8) == 100 and hosts.bandwidth(16) == 10
    hosts = dataclasses.replace(hosts, devices=list(range(32)))
    assert hosts.bandwidth(8, range(8)) == 100
    assert hosts.bandwidth(4, range(0, 32, 8)) == 10  # one device of each host


def test_chips_are_known_by_the_longest_name():
    assert chip_of("TPU v5 lite").peak_flops == 197e12
    assert chip_of("TPU v5").peak_flops == 459e12
    assert chip_of("NVIDIA H100 80GB HBM3").peak_flops == 989e12
    assert chip_of("NVIDIA H100 PCIe").peak_flops == 756e12
    assert chip_of("NVIDIA H200 NVL").peak_flops == 835e12
    assert chip_of("Tesla V100-PCIE-16GB").peak_flops == 112e12
    assert chip_of("NVIDIA GeForce RTX 4090").peak_flops == 165e12
    assert chip_of("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert chip_of("NVIDIA A100-SXM4-80GB").name == "NVIDIA A100"
    assert chip_of("NVIDIA L40") is None and chip_of("NVIDIA L40S").name == "NVIDIA L40S"
    assert chip_of(jax.devices()[0].device_kind) is None


def test_process_that_has_used_jax_gets_no_other_devices():
    assert len(jax.devices()) != 7
    with pytest.raises(UserError, match=r"used JAX already.*call can_jax\.plan_run"):
        open_topology("cpu:7")


def test_program_keeps_its_devices_and_settings():
    done = subprocess.run([sys.executable, "-c", UNUSED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
