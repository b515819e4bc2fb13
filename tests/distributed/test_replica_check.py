import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from can_jax.distributed.replica_check import ReplicaCheck, checksum

PLACES = {
    "everywhere": PartitionSpec(),
    "split": PartitionSpec(("data", "fsdp")),
    "columns": PartitionSpec(None, "fsdp"),
}


@pytest.fixture
def mesh():
    return jax.make_mesh((4, 2, 1), ("data", "fsdp", "tensor"))


def tree(mesh, dtype=np.float32):
    numbers = np.random.default_rng(0).standard_normal((8, 6)).astype(dtype)
    return {
        name: jax.device_put(numbers, NamedSharding(mesh, spec)) for name, spec in PLACES.items()
    }


def with_one_bit_changed(array, device):
    """The array, with one bit of one device's copy changed."""
    parts = []
    for shard in array.addressable_shards:
        bits = np.array(shard.data)
        if shard.device.id == device:
            bits.view(np.uint8).reshape(-1)[1] ^= 1
        parts.append(jax.device_put(bits, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int32])
def test_one_bit_of_one_copy_is_found_and_named(mesh, dtype):
    good = tree(mesh, dtype)
    check = ReplicaCheck(good, mesh)
    assert check(good) is None
    for name in ("everywhere", "columns"):
        bad = good | {name: with_one_bit_changed(good[name], 5)}
        message = f"holds a copy of {name} that differs from the copies of other devices"
        assert check(bad) == f"device 5 of process 0 {message}"
    both = good | {n: with_one_bit_changed(good[n], 2) for n in ("everywhere", "columns")}
    assert "device 2" in check(both) and "1 more arrays" in check(both)
    # Each device has a part of its own: there is nothing to compare.
    assert check(good | {"split": with_one_bit_changed(good["split"], 5)}) is None


def test_coverage_is_of_arrays_with_copies(mesh):
    size = 8 * 6 * 4
    check = ReplicaCheck(tree(mesh), mesh)
    assert check.coverage == 2 * size / (3 * size)  # "split" is on all devices, without copies


def test_checksum_knows_places():
    a = jnp.array([1.0, 2.0, 3.0])
    assert checksum(a) != checksum(a[::-1])
    assert checksum(a) != checksum(a.at[2].set(np.nextafter(np.float32(3), np.float32(4))))
