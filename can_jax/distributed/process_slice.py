"""Which rows of a batch each process loads, and how they become one array."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int

from can_jax.distributed.mesh import batch_sharding


@dataclasses.dataclass(frozen=True)
class Share:
    """The rows of a global batch that a process loads: those of its devices.

    Row ``r`` of the batch is the same on any mesh and any number of processes. The devices of a
    process need not be neighbours in the mesh, so its rows need not be either; and processes over
    whose devices a row's parameters are split load the same rows.

    Attributes:
        rows: ascending.
        number, count: which of the different shares this one is, and how many there are.
        batch_size: of the global batch.
        sharding: of the global batch.
    """

    rows: Int[np.ndarray, " local"]
    number: int
    count: int
    batch_size: int
    sharding: NamedSharding

    def place(self, local: Any) -> Array:
        """The global array of which this process holds its rows.

        Args:
            local: (local, …) on the host.
        """

        def shard(index: Any) -> Any:
            first, last, _ = index[0].indices(self.batch_size)
            start = int(np.searchsorted(self.rows, first))
            return local[start : start + last - first]

        shape = (self.batch_size, *local.shape[1:])
        return jax.make_array_from_callback(shape, self.sharding, shard)


Places = dict[int, set[tuple[int, int]]]  # of each process: first row and last, exclusive


def places_of_processes(sharding: NamedSharding, batch_size: int) -> Places:
    """Where in a batch the devices of each process are."""
    places: Places = {}
    indices: dict[Any, Any] = dict(sharding.devices_indices_map((batch_size,)))
    for device, index in indices.items():
        first, last, _ = index[0].indices(batch_size)
        places.setdefault(device.process_index, set()).add((first, last))
    return places


def share_of_process(mesh: Mesh, batch_size: int, process: int | None = None) -> Share:
    """The share of a process, by default of this one.

    Args:
        mesh: of the devices of all processes.
        batch_size: rows of the global batch, which divide over the mesh.
        process: its number.
    """
    sharding = batch_sharding(mesh)
    places = places_of_processes(sharding, batch_size)
    mine = places[jax.process_index() if process is None else process]
    different = sorted({tuple(sorted(place)) for place in places.values()})
    return Share(
        rows=np.concatenate([np.arange(*place) for place in sorted(mine)]),
        number=different.index(tuple(sorted(mine))),
        count=len(different),
        batch_size=batch_size,
        sharding=sharding,
    )
