"""The flags by which several processes become one job, shared by the commands that need them."""

from absl import flags

from can_jax.distributed.runtime import start

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0; not needed on Cloud TPU, GKE, SLURM, Open MPI."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are; likewise.")
_PROCESS = flags.DEFINE_integer("process", None, "Which one this is, from 0; likewise.")
_TIMEOUT = flags.DEFINE_integer("start_timeout", 300, "Seconds to wait for the others.")


def join() -> None:
    """Join this process with the others of its job, if there are any."""
    start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, _TIMEOUT.value)
