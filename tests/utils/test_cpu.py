"""A container's quota of cores is counted, as both versions of control groups set it."""

import math
import os

import pytest

from can_jax.cli.process import bound_threads
from can_jax.utils import cpu as processes
from can_jax.utils.cpu import cpu_quota, usable_cores

SYSTEM = "1 0 0:1 / /proc rw - proc proc rw\n"


def process(tmp_path, groups, mounts, files):
    """A folder like /proc/self, and a tree of control groups below ``tmp_path / "sys"``."""
    for name, text in files.items():
        file = tmp_path / "sys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    lines = [
        f"30 1 0:26 {root} {tmp_path}/sys/{point} rw - {system}\n" for root, point, system in mounts
    ]
    (tmp_path / "cgroup").write_text(groups)
    (tmp_path / "mountinfo").write_text(SYSTEM + "".join(lines))
    return tmp_path


V2 = [("/", "", "cgroup2 cgroup2 rw")]
V1 = [("/", "memory", "cgroup cgroup rw,memory"), ("/", "cpu", "cgroup cgroup rw,cpu,cpuacct")]


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "cores"),
    [
        ("0::/\n", V2, {"cpu.max": "400000 100000"}, 4.0),
        ("0::/\n", V2, {"cpu.max": "max 100000"}, math.inf),
        ("0::/\n", V2, {"cgroup.procs": ""}, math.inf),
        # The smallest on the way counts, whichever group sets it.
        ("0::/a/b\n", V2, {"a/cpu.max": "150000 100000", "a/b/cpu.max": "800000 100000"}, 1.5),
        ("0::/a/b\n", V2, {"a/b/cpu.max": "25000 50000", "cpu.max": "max 100000"}, 0.5),
        ("0::/a\n", V2, {"a/x": "", "c/cpu.max": "100000 100000"}, math.inf),
        ("4:cpu,cpuacct:/p\n2:memory:/\n", V1, {
            "cpu/p/cpu.cfs_quota_us": "300000", "cpu/p/cpu.cfs_period_us": "100000",
            "memory/cpu.cfs_quota_us": "1", "memory/cpu.cfs_period_us": "1"}, 3.0),
        ("4:cpu:/\n", V1, {
            "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        # Docker without a namespace of its own: the path is that of the host.
        ("4:cpu:/docker/9f\n0::/docker/9f\n",
         [("/docker/9f", "cpu", "cgroup cgroup rw,cpu"), ("/", "u", "cgroup2 cgroup2 rw")],
         {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2.5),
        ("0::/../../other\n", V2, {"cpu.max": "200000 100000"}, 2.0),
        ("nonsense\n", V2, {"cpu.max": "nonsense"}, math.inf),
    ],
)  # fmt: skip
def test_quota_of_control_groups(tmp_path, groups, mounts, files, cores):
    assert cpu_quota(process(tmp_path, groups, mounts, files)) == cores


def test_mount_point_with_a_space(tmp_path):
    place = process(tmp_path, "0::/\n", [("/", r"my\040groups", "cgroup2 cgroup2 rw")], {})
    (tmp_path / "sys" / "my groups").mkdir(parents=True)
    (tmp_path / "sys" / "my groups" / "cpu.max").write_text("100000 100000")
    assert cpu_quota(place) == 1.0


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (1.5, 2), (3.0, 3), (math.inf, 8)])
def test_quota_and_affinity_bound_the_cores(monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(processes, "cpu_quota", lambda: quota)
    assert usable_cores() == cores


@pytest.mark.parametrize(("quota", "threads"), [(2.5, "3"), (math.inf, None)])
def test_xla_is_told_the_quota(monkeypatch, quota, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(processes, "cpu_quota", lambda: quota)
    monkeypatch.setenv("NPROC", "")  # so that it is put back
    monkeypatch.delenv("NPROC")
    bound_threads()
    assert os.environ.get("NPROC") == threads
    monkeypatch.setenv("NPROC", "1")  # which somebody set
    bound_threads()
    assert os.environ["NPROC"] == "1"


def test_no_control_groups(tmp_path):
    assert cpu_quota(tmp_path / "none") == math.inf
    assert usable_cores() >= 1
