"""The flags that select the workers of a command: local processes, or a Ray cluster."""

from can_jax.cli.flags import Flags, Holder
from can_jax.utils.cpu import usable_cores
from can_jax.utils.errors import UserError
from can_jax.utils.workers import Workers


class WorkerFlags:
    """The flags ``--workers`` and ``--cluster`` of a command."""

    def __init__(self, flags: Flags):
        self._processes = flags.integer(
            "workers", None, "The number of local processes; by default one for each core.", 1
        )
        self._cluster = cluster_flag(flags)

    def read(self) -> Workers:
        """Return the workers that the command line selects.

        Raises:
            UserError: The command line selects both local processes and a cluster.
        """
        processes, cluster = self._processes.value, self._cluster.value
        if processes is not None and cluster is not None:
            raise UserError(
                f"--workers={processes} sets the number of local processes, but "
                f"--cluster={cluster} starts none: give only one of them"
            )
        return Workers(processes or usable_cores(), cluster)


def cluster_flag(flags: Flags) -> Holder:
    """Define the flag ``--cluster``, and return its absl ``FlagHolder``."""
    return flags.text(
        "cluster",
        None,
        "The address of a Ray cluster that does the work instead of this machine: `auto` for the "
        "cluster that this machine belongs to, or `ray://HOST:10001`. All nodes need can_jax, and "
        "must find the data under the same paths or URLs as this machine.",
    )
