"""A check that the copies of a replicated array are equal on all devices.

Every device updates its own copy of the replicated parameters. On a faulty device, the copy of the
parameters can become wrong without an error, and training continues with corrupted weights.
"""

from collections import Counter, defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, UInt32

from can_jax.distributed.mesh import replicated
from can_jax.distributed.sharding_rules import named_leaves
from can_jax.utils.errors import listed


def checksum(array: Array) -> UInt32[Array, ""]:
    """Return an order-sensitive checksum of the bits of an array."""
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[array.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32).reshape(-1)
    weights = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
    return jnp.sum(bits * weights, dtype=jnp.uint32)


class ReplicaCheck:
    """A comparison of all copies of every array in a pytree, over all devices and hosts.

    Args:
        abstract: The structure of the pytrees to check, with `jax.ShapeDtypeStruct` leaves that
            have shardings.
        mesh: The device mesh of the shardings.
    """

    def __init__(self, abstract: Any, mesh: Mesh):
        self._mesh = mesh
        leaves = named_leaves(abstract)
        self._names = list(leaves)
        self._bytes = [leaf.size * leaf.dtype.itemsize for leaf in leaves.values()]
        # For each array, the groups of devices that hold the same part. A device is represented by
        # its row in the table of checksums.
        self._copies = [_copies(leaf, mesh) for leaf in leaves.values()]

        def sums(*arrays: Array) -> UInt32[Array, "1 leaves"]:
            return jnp.stack([checksum(array) for array in arrays])[None]

        table = jax.shard_map(
            sums,
            mesh=mesh,
            in_specs=tuple(leaf.sharding.spec for leaf in leaves.values()),
            out_specs=PartitionSpec(mesh.axis_names),
            check_vma=False,
        )
        self._sums = jax.jit(table, out_shardings=replicated(mesh))

    @property
    def coverage(self) -> float:
        """The fraction of the pytree's bytes that belong to arrays of which several devices hold
        the same part."""
        copied = sum(
            size
            for size, groups in zip(self._bytes, self._copies, strict=True)
            if any(len(group) > 1 for group in groups)
        )
        return copied / max(1, sum(self._bytes))

    def __call__(self, tree: Any) -> str | None:
        """Return a message about the first array whose copies differ, or None if all are equal.

        The message names the array and the devices whose copies are in the minority. If two values
        are equally frequent, the copy of the first device counts as correct. Collective: every
        process must call this.
        """
        table = np.asarray(jax.device_get(self._sums(*jax.tree.leaves(tree))))
        devices = list(self._mesh.devices.flat)
        odd: dict[str, list[str]] = defaultdict(list)
        for name, groups, sums in zip(self._names, self._copies, table.T, strict=True):
            for group in groups:
                usual, _ = Counter(sums[group].tolist()).most_common(1)[0]
                odd[name] += [
                    f"device {devices[i].id} of process {devices[i].process_index}"
                    for i in group
                    if sums[i] != usual
                ]
        wrong = {name: suspects for name, suspects in odd.items() if suspects}
        if not wrong:
            return None
        name, suspects = next(iter(wrong.items()))
        more = f" (and of {len(wrong) - 1} more arrays)" if len(wrong) > 1 else ""
        holders = listed(suspects, "holds", "hold")
        return f"{holders} a copy of {name}{more} that differs from the copies of other devices"


def _copies(leaf: Any, mesh: Mesh) -> list[list[int]]:
    """Return, for each part of a sharded array, the indices of the devices that hold it."""
    parts = leaf.sharding.devices_indices_map(leaf.shape)
    groups: dict[str, list[int]] = defaultdict(list)
    for index, device in enumerate(mesh.devices.flat):
        groups[str(parts[device])].append(index)
    return list(groups.values())
