import jax
import numpy as np
import pytest

from can_jax.distributed import process_slice as rows
from can_jax.distributed.mesh import make_mesh
from can_jax.distributed.process_slice import slice_of_process
from tests.helpers.configs import small_config


def mesh_of(**axes):
    return make_mesh(small_config(**{f"mesh__{name}": size for name, size in axes.items()}).mesh)


@pytest.fixture
def spread(monkeypatch):
    def shares(places, batch_size):
        """Of several processes, which one process cannot have."""
        monkeypatch.setattr(rows, "row_ranges_of_processes", lambda *_: places)
        mesh = mesh_of()
        return [slice_of_process(mesh, batch_size, process) for process in places]

    return shares


def test_rows_are_those_of_the_devices_of_a_process(spread):
    one, other = spread({0: {(8, 12), (0, 4)}, 1: {(4, 8), (12, 16)}}, 16)
    assert one.rows.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert other.rows.tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    assert [(s.index, s.count) for s in (one, other)] == [(0, 2), (1, 2)]


def test_processes_that_split_parameters_load_the_same_rows(spread):
    shares = spread({0: {(0, 4)}, 1: {(0, 4)}, 2: {(4, 8)}, 3: {(4, 8)}}, 8)
    assert [share.rows.tolist() for share in shares] == [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] * 2
    assert [(share.index, share.count) for share in shares] == [(0, 2), (0, 2), (1, 2), (1, 2)]


@pytest.mark.parametrize(
    "axes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "tensor": 8}]
)
def test_local_rows_become_the_global_array(axes):
    share = slice_of_process(mesh_of(**axes), 16)
    assert share.rows.tolist() == list(range(16)) and (share.index, share.count) == (0, 1)
    local = np.arange(48).reshape(16, 3)
    placed = share.place(local)
    assert placed.sharding == share.sharding and len(placed.addressable_shards) == 8
    np.testing.assert_array_equal(jax.device_get(placed), local)
