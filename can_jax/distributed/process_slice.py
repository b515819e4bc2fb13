"""The rows of a batch that each process loads, and their assembly into one global array."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int

from can_jax.distributed.mesh import batch_sharding


@dataclasses.dataclass(frozen=True)
class ProcessSlice:
    """The rows of a global batch that a process loads because its devices compute them.

    The content of a global batch does not depend on the mesh or the number of processes. The rows
    of a process need not be contiguous. Processes whose devices differ only along the mesh axis
    `tensor` load the same rows.

    Attributes:
        rows: The indices of the rows in the global batch, ascending.
        index: The index of this slice among the distinct slices of all processes.
        count: The number of distinct slices of all processes.
        batch_size: The number of rows of the global batch.
        sharding: The sharding of the global batch.
    """

    rows: Int[np.ndarray, " local"]
    index: int
    count: int
    batch_size: int
    sharding: NamedSharding

    def place(self, local: Any) -> Array:
        """Return a global array, to which this process contributes its rows.

        Args:
            local: A host array with the rows of this process, of shape ``(len(rows), ...)``.
        """

        def shard(index: Any) -> Any:
            first, last, _ = index[0].indices(self.batch_size)
            start = int(np.searchsorted(self.rows, first))
            return local[start : start + last - first]

        shape = (self.batch_size, *local.shape[1:])
        return jax.make_array_from_callback(shape, self.sharding, shard)


RowRanges = dict[int, set[tuple[int, int]]]  # by process: (first row, row after the last)


def row_ranges_of_processes(sharding: NamedSharding, batch_size: int) -> RowRanges:
    """Return the ranges of batch rows that the devices of each process hold."""
    ranges: RowRanges = {}
    indices: dict[Any, Any] = dict(sharding.devices_indices_map((batch_size,)))
    for device, index in indices.items():
        first, last, _ = index[0].indices(batch_size)
        ranges.setdefault(device.process_index, set()).add((first, last))
    return ranges


def slice_of_process(mesh: Mesh, batch_size: int, process: int | None = None) -> ProcessSlice:
    """Return the rows of a batch that a process loads.

    Args:
        mesh: The device mesh of all processes.
        batch_size: The number of rows of the global batch, a multiple of `batch_shards`.
        process: The index of the process; by default that of this process.
    """
    sharding = batch_sharding(mesh)
    ranges = row_ranges_of_processes(sharding, batch_size)
    mine = ranges[jax.process_index() if process is None else process]
    distinct = sorted({tuple(sorted(spans)) for spans in ranges.values()})
    return ProcessSlice(
        rows=np.concatenate([np.arange(*span) for span in sorted(mine)]),
        index=distinct.index(tuple(sorted(mine))),
        count=len(distinct),
        batch_size=batch_size,
        sharding=sharding,
    )
