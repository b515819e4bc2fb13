"""The flags that connect several processes into one job."""

from can_jax.cli.flags import Flags
from can_jax.distributed.runtime import start


class Job:
    """The distributed job of this process, and the flags that locate the job's other processes.

    Args:
        flags: The flags of the command, to which the flags of the job are added.
    """

    def __init__(self, flags: Flags):
        self._coordinator = flags.text(
            "coordinator", None,
            "HOST:PORT of process 0; detected automatically on Cloud TPU, GKE, SLURM and Open MPI.",
        )  # fmt: skip
        self._processes = flags.integer(
            "processes",
            None,
            "The number of processes; detected automatically like --coordinator.",
            1,
        )
        self._process = flags.integer(
            "process",
            None,
            "The index of this process, from 0; detected automatically like --coordinator.",
            0,
        )
        self._timeout = flags.integer(
            "start_timeout",
            300,
            "The maximum time to wait for the other processes to start, in seconds.",
            1,
        )

    def join(self) -> None:
        """Connect this process to the other processes of its job, if there are any.

        Blocks until all processes have joined, for at most ``--start_timeout`` seconds. Collective:
        every process must call this.
        """
        values = (self._coordinator, self._processes, self._process, self._timeout)
        start(*(value.value for value in values))
