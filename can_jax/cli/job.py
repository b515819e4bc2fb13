"""The flags by which several processes become one job."""

from can_jax.cli.flags import Flags
from can_jax.distributed.runtime import start


class Job:
    """The processes of which this one is a part.

    Args:
        flags: Get the flags of the job.
    """

    def __init__(self, flags: Flags):
        self._coordinator = flags.text(
            "coordinator", None,
            "HOST:PORT of process 0; not needed on Cloud TPU, GKE, SLURM, Open MPI.",
        )  # fmt: skip
        self._processes = flags.integer("processes", None, "The number of processes; likewise.")
        self._process = flags.integer("process", None, "Number of this one, from 0; likewise.")
        self._timeout = flags.integer("start_timeout", 300, "Seconds to wait for the others.")

    def join(self) -> None:
        """Join this process with the others of its job, if there are any."""
        values = (self._coordinator, self._processes, self._process, self._timeout)
        start(*(value.value for value in values))
