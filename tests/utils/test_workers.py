"""The division of work, of which `tests/remote/test_cluster.py` tests the part on a Ray cluster."""

import sys

import pytest

from can_jax.utils.errors import UserError
from can_jax.utils.workers import Workers
from tests.helpers.runs import main_in_process


def test_cluster_without_ray_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--cluster=auto: Ray is not installed: pip .*\[ray\]"):
        list(Workers(cluster="auto").results(len, ["a"]))


def test_local_processes_beside_a_cluster_are_refused(tmp_path):
    (tmp_path / "a.tar").touch()
    done = main_in_process("can_jax.data.index", tmp_path, "--workers=2", "--cluster=auto")
    assert done.returncode == 1 and "give only one of them" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]
