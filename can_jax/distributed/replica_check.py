"""Whether devices that should hold the same numbers do.

Parameters that are not split lie on every device, which updates its own copy. Where one device is
faulty, its copy drifts without any error: the run goes on, and so does the damage.
"""

from collections import Counter, defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, UInt32

from can_jax.distributed.mesh import replicated
from can_jax.distributed.sharding_rules import path_name


def checksum(array: Array) -> UInt32[Array, ""]:
    """A sum of an array's bits, in which every bit and its place count."""
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[array.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32).reshape(-1)
    places = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
    return jnp.sum(bits * places, dtype=jnp.uint32)


class ReplicaCheck:
    """Compares the copies of every array of a tree, over all devices and hosts.

    Args:
        abstract: the tree, with shapes and shardings.
        mesh: on which it lies.
    """

    def __init__(self, abstract: Any, mesh: Mesh):
        self._mesh = mesh
        leaves = jax.tree_util.tree_leaves_with_path(abstract)
        self._names = [path_name(path) for path, _ in leaves]
        # Devices with the same part of an array, as columns of the table of checksums.
        self._copies = [_copies(leaf, mesh) for _, leaf in leaves]

        def sums(*arrays: Array) -> UInt32[Array, "1 leaves"]:
            return jnp.stack([checksum(array) for array in arrays])[None]

        table = jax.shard_map(
            sums,
            mesh=mesh,
            in_specs=tuple(leaf.sharding.spec for _, leaf in leaves),
            out_specs=PartitionSpec(mesh.axis_names),
            check_vma=False,
        )
        self._sums = jax.jit(table, out_shardings=replicated(mesh))

    def __call__(self, tree: Any) -> str | None:
        """What differs, in words: an array, and the devices whose copy is not that of most. None if
        all copies agree. All processes have to ask."""
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
        wrong = {name: found for name, found in odd.items() if found}
        if not wrong:
            return None
        name, found = next(iter(wrong.items()))
        more = f" (and {len(wrong) - 1} more arrays)" if len(wrong) > 1 else ""
        return f"{', '.join(found)} has another {name}{more} than the others"


def _copies(leaf: Any, mesh: Mesh) -> list[list[int]]:
    """Numbers of the devices that hold the same part of an array, part by part."""
    parts = leaf.sharding.devices_indices_map(leaf.shape)
    groups: dict[str, list[int]] = defaultdict(list)
    for number, device in enumerate(mesh.devices.flat):
        groups[str(parts[device])].append(number)
    return list(groups.values())
