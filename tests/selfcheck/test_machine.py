"""What the doctor finds, and what it says is to be mended."""

import pytest

from can_jax.distributed.hardware import Devices, chip_of
from can_jax.selfcheck import machine


def test_findings_are_of_this_machine():
    found = {f.name: f for f in [*machine.devices(), *machine.limits(), *machine.file_systems()]}
    assert "cpu" in found["devices"].value and "jax " in found["packages"].value
    assert found["current folder"].value.endswith(" free")


@pytest.mark.parametrize(
    ("limits", "advice"),
    [((1024, 65536), "ulimit -n 4096"), ((1024, 2048), "the hard limit is 2048"), ((9000, -1), "")],
)
def test_few_descriptors_are_to_be_mended(monkeypatch, limits, advice):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: limits)
    (finding,) = (f for f in machine.limits() if f.name == "file descriptors")
    assert advice in finding.mend and bool(advice) == bool(finding.mend)


def test_full_disk_and_unwritable_cache_are_to_be_mended(monkeypatch, tmp_path):
    usage = machine.shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(machine.os, "access", lambda path, _: "cache" not in str(path))
    monkeypatch.setattr(machine, "user_cache", lambda: tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    found = {f.name: f.mend for f in machine.file_systems()}
    assert "free some space" in found["current folder"]
    assert "each start compiles" in found["cache of programs"]


@pytest.mark.parametrize(
    ("kind", "bfloat16", "rate"),
    [("Tesla V100-SXM2-32GB", False, 14e12), ("NVIDIA H100 80GB HBM3", True, 100e12)],
)
def test_float32_is_not_compared_with_the_peak_of_16_bit_floats(monkeypatch, kind, bfloat16, rate):
    found = Devices("gpu", kind, 1, None, bfloat16)
    monkeypatch.setattr(machine, "attached_devices", lambda: found)
    monkeypatch.setattr(machine, "peak_flops", lambda _: chip_of(kind).peak_flops)
    monkeypatch.setattr(machine, "matmul_flops", lambda *_: rate)
    monkeypatch.setattr(machine, "repeated", lambda _: 1.0)
    product = machine.speeds()[0]
    assert bool(product.mend) == bfloat16 == ("of the peak" in product.value)


def test_file_system_is_that_of_the_innermost_mount(monkeypatch):
    mounts = "d / ext4 rw\nd /data nfs rw\nd /data/fast xfs rw\n"
    monkeypatch.setattr(machine.Path, "read_text", lambda _: mounts)
    for path, kind in (("/data/a", "nfs"), ("/data/fast/b", "xfs"), ("/database", "ext4")):
        assert machine.file_system(machine.Path(path)) == kind
