"""The division of independent units of work among local processes or the nodes of a Ray cluster."""

import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from can_jax.utils.cpu import end_with_parent
from can_jax.utils.errors import UserError, one_line
from can_jax.utils.extras import install_command

Item = TypeVar("Item")
Result = TypeVar("Result")
RETRIES = 20  # of a unit whose node or process died; a unit that always crashes must finally fail
SECONDS_TO_ANSWER = 20.0  # the timeout for a connection to the head of a cluster
TASKS_PER_CORE = 2  # units submitted per core, so that no core waits for its next unit


class Workers(NamedTuple):
    """The processes among which a command divides its work.

    Attributes:
        processes: The number of local processes; with 1, the calling process does all the work.
        cluster: The address of a Ray cluster, such as `auto` for the cluster of this machine, or
            `ray://HOST:10001`; None to use local processes.
    """

    processes: int = 1
    cluster: str | None = None

    def results(
        self, function: Callable[[Item], Result], items: Sequence[Item], gpu: bool = False
    ) -> Iterator[tuple[int, Result]]:
        """Yield the index and the result of each item, in the order in which the calls finish.

        Args:
            function: A function that can be pickled. If a node of a cluster dies, its calls are
                repeated, so calling ``function`` twice must be harmless.
            items: The units of work.
            gpu: Whether each call occupies a GPU of a cluster that has GPUs; no effect without a
                cluster.

        Raises:
            UserError: Ray is not installed, or the cluster cannot be reached. The cluster has
                another version of can_jax, or lost a unit of work more than `RETRIES` times.
        """
        if self.cluster is not None:
            return self._on_cluster(self.cluster, function, items, gpu)
        if self.processes == 1 or len(items) < 2:
            return ((index, function(item)) for index, item in enumerate(items))
        return self._in_processes(function, items)

    def _in_processes(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]:
        context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
        count = min(self.processes, len(items))
        with concurrent.futures.ProcessPoolExecutor(count, context, _start_process) as pool:
            futures = {pool.submit(function, item): index for index, item in enumerate(items)}
            try:
                for future in concurrent.futures.as_completed(futures):
                    yield futures.pop(future), future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _on_cluster(
        self, address: str, function: Callable[[Item], Result], items: Sequence[Item], gpu: bool
    ) -> Iterator[tuple[int, Result]]:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise UserError(
                f"--cluster={address}: Ray is not installed: {install_command('ray')}"
            ) from error
        try:
            _reach(address)
            ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError) as error:
            raise UserError(
                f"--cluster={address}: no Ray cluster answers: {one_line(error)}"
            ) from error
        try:
            gpus = int(gpu and "GPU" in ray.cluster_resources())
            task = ray.remote(_call).options(max_retries=RETRIES, num_gpus=gpus)
            here = (_version(), os.getcwd())
            waiting = iter(enumerate(items))
            running: dict[Any, int] = {}
            while True:
                limit = TASKS_PER_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
                for index, item in itertools.islice(waiting, max(0, limit - len(running))):
                    running[task.remote(here, function, item)] = index
                if not running:
                    break
                for finished in ray.wait(list(running))[0]:
                    yield running.pop(finished), ray.get(finished)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise UserError(f"--cluster={address}: {one_line(error)}") from error
        finally:
            ray.shutdown()


THIS_PROCESS = Workers()


def _reach(address: str) -> None:
    """Check that the head node of a cluster accepts connections, if the address has host and port.

    Ray itself would retry an unreachable address for minutes.

    Raises:
        OSError: The connection failed.
        ValueError: The port is not a number.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host, int(port)), SECONDS_TO_ANSWER).close()


def _version() -> str:
    """Return the version of this package, from the imported module ``can_jax``."""
    version: str = sys.modules["can_jax"].__version__
    return version


def _call(here: tuple[str, str], function: Callable[[Item], Result], item: Item) -> Result:
    """Call a function on a node of a cluster.

    Args:
        here: The version of can_jax that the node must have, and the working directory for relative
            paths. A node without this directory keeps its own working directory.
        function: The function to call.
        item: The argument of ``function``.

    Raises:
        UserError: The node has another version of can_jax.
    """
    version, folder = here
    if version != _version():
        raise UserError(
            f"--cluster: a node has can_jax {_version()}, this machine has {version}; install the "
            "same version on all nodes"
        )
    with contextlib.suppress(OSError):
        os.chdir(folder)
    _silence_pillow()
    return function(item)


def _start_process() -> None:
    """Prepare a local worker process, which ends when its parent ends."""
    end_with_parent()
    _silence_pillow()


def _silence_pillow() -> None:
    """Ignore Pillow's warnings in a worker process, since commands report undecodable images."""
    warnings.filterwarnings("ignore", module="PIL")
