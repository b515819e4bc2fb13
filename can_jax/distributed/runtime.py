"""Functions for the processes of a job: startup, barriers, stop signals and environment."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from can_jax.distributed.abort import abort, abort_on_sigabrt
from can_jax.distributed.preemption import handler
from can_jax.utils.cpu import usable_cores
from can_jax.utils.errors import UserError, listed, one_line
from can_jax.utils.extras import tpu_chips

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-cpu", "numpy")

# The environment variables that `spare_absent_tpu` sets for libtpu on a machine without a TPU.
ABSENT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

# Seconds without a heartbeat after which a process counts as lost. JAX then aborts the other
# processes.
HEARTBEAT_SECONDS = 60
# Seconds that a process waits at most for others, which may still scan data or save a checkpoint.
BARRIER_SECONDS = 7200.0


def detect_launcher() -> str | None:
    """Detect the launcher of a multi-process job from the environment.

    Returns:
        `SLURM`, `Open MPI` or `Cloud TPU`; None if no launcher is detected.
    """
    environment = os.environ
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in environment:
        return "SLURM"
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI"
    if tpu_chips() and importlib.util.find_spec("libtpu"):
        return "Cloud TPU"  # or GKE
    return None


def spare_absent_tpu() -> None:
    """Keep libtpu from querying the network for a TPU on a machine without one.

    A failed query would log long errors when the planner `can_jax.plan` compiles with libtpu. Call
    this function before JAX starts a backend.
    """
    if not tpu_chips():
        for name, value in ABSENT_TPU.items():
            os.environ.setdefault(name, value)


def start(
    coordinator: str | None, processes: int | None, process: int | None, timeout: int
) -> None:
    """Connect this process to the others of its job. Call this function before any function of JAX.

    On Cloud TPU, GKE, SLURM and Open MPI, JAX detects the values of the arguments that are None. If
    no launcher is detected and the first three arguments are None, this function does nothing. If
    the processes do not find each other within ``timeout`` seconds, `abort` ends this process.
    Collective: every process of the job must call this.

    Args:
        coordinator: The ``host:port`` of process 0, reachable from all processes.
        processes: The number of processes.
        process: The index of this process, from 0.
        timeout: The number of seconds to wait for the other processes.

    Raises:
        UserError: Arguments are missing or invalid, the connection failed, or the environment
            variable ``CAN_JAX_JOB`` differs between processes.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    launcher = detect_launcher()
    if 0 < len(missing) < 3 and not launcher:
        raise UserError(
            f"{listed(missing, 'is', 'are')} missing: give --coordinator=HOST:PORT, "
            "--processes and --process together"
        )
    if len(missing) == 3 and launcher is None:
        return
    if processes is not None and process is not None and not 0 <= process < processes:
        raise UserError(
            f"--process={process}: give a number from 0 to {processes - 1}, since --processes="
            f"{processes}"
        )
    where = f"at --coordinator={coordinator}"
    if coordinator is None:
        where = f"at the coordinator that JAX detected from {launcher}"
    hint = (
        f"the processes of this job did not find each other {where} within --start_timeout="
        f"{timeout} s: check that all of them were started, and can reach that host and port"
    )
    if proxies := [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy")]:
        hint += f"; the environment variables {' and '.join(proxies)} may block the connection"
    gone = (
        "another process of the job, or its host, has died or sent no heartbeat for "
        f"{HEARTBEAT_SECONDS} s. Re-run the command to resume from the last checkpoint"
    )
    abort_on_sigabrt(f"this process exits: {gone}")  # a process may fail before all have joined
    try:
        with abort_after(timeout, hint):  # JAX's own timeout ends with a stack dump
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                initialization_timeout=timeout + 60,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=90,  # JAX then aborts; a command exits earlier
            )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{hint} ({one_line(error)[:200]})") from error
    abort_on_sigabrt(f"process {jax.process_index()} of {jax.process_count()} exits: {gone}")
    assert_equal_across_processes("job (CAN_JAX_JOB)", os.environ.get("CAN_JAX_JOB", ""))


@contextlib.contextmanager
def abort_after(seconds: float, message: str, stacks: bool = False) -> Iterator[None]:
    """Abort the program with a message if the body of this context exceeds a timeout.

    Args:
        seconds: The timeout in seconds.
        message: The last line to print before the program exits.
        stacks: Whether to print the stack of every thread before the message.
    """
    watch = threading.Timer(seconds, abort, [message, stacks])
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


@contextlib.contextmanager
def barrier(name: str, seconds: float = BARRIER_SECONDS) -> Iterator[None]:
    """Abort the program if the collective operation in this context exceeds a timeout.

    The context manager itself does not synchronize processes. In a job of one process this function
    has no effect.

    Args:
        name: The name of the operation, for messages.
        seconds: The timeout in seconds.
    """
    if jax.process_count() == 1:
        yield
        return
    me = f"process {jax.process_index()} of {jax.process_count()}"
    started = time.perf_counter()
    with abort_after(
        seconds,
        f"{me} waited {seconds:.0f} s at {name!r} for the other processes; one of them has died or "
        "hangs",
        stacks=True,
    ):
        yield
    logging.info("%s: completed by all processes after %.2f s", name, time.perf_counter() - started)


def gather(name: str, value: Any) -> np.ndarray:
    """Return the values of all processes, stacked along a new first axis. Collective: every process
    must call this.

    Args:
        name: The name of this operation, for messages.
        value: The value of this process, an array of the same shape in every process.
    """
    if jax.process_count() == 1:
        return np.asarray(value)[None]
    with barrier(name):
        return np.asarray(multihost_utils.process_allgather(value))


class StopSignals:
    """The stop signals of a job, which the training loop polls after each step.

    All processes of a job stop after the same step, even if only one of them received the signal.
    Inside another program, such as a notebook, `StopSignals` handles only SIGTERM. If `StopSignals`
    is created outside the main thread, it installs no signal handler.
    """

    def __init__(self) -> None:
        self._several = jax.process_count() > 1
        self._forwarded = False
        self._before: Any = None
        main = threading.current_thread() is threading.main_thread()
        if main and not handler.installed and not self._several:
            self._before = signal.signal(signal.SIGTERM, lambda *_: handler.request(signal.SIGTERM))

    def begin(self) -> None:
        """Make signals wait for the next call of `after` instead of ending the process."""
        handler.defer()

    def after(self, step: int) -> bool:
        """Return whether the job must stop after ``step``. Collective: every process must call
        this."""
        if not self._several:
            return handler.requested is not None
        if handler.requested and not self._forwarded:
            self._forwarded = True
            os.kill(os.getpid(), signal.SIGTERM)  # JAX's service forwards it to the others
        return bool(multihost_utils.reached_preemption_sync_point(step))

    def close(self) -> None:
        """Restore the previous signal handling."""
        handler.resume()
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            handler.requested = None


def assert_equal_across_processes(
    name: str, text: str, hint: str = "start all processes with the same command"
) -> None:
    """Check that a text is equal in all processes. Collective: every process must call this.

    Args:
        name: The name of the text, for messages, such as ``configuration``.
        text: The text of this process, which is compared with that of process 0.
        hint: The last part of the error message: what to do if the texts differ.

    Raises:
        UserError: The text of a process differs from that of process 0.
    """
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], np.int32)
    others = gather(f"same {name}", digest)
    different = np.flatnonzero((others != others[0]).any(axis=1))
    if len(different):
        processes = listed([f"process {number}" for number in different], "has", "have")
        raise UserError(f"{processes} a different {name} than process 0; {hint}")


def version_of(package: str) -> str | None:
    """Return the installed version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Return the git commit of this package's checkout, or None outside of a checkout.

    The suffix `+changes` marks uncommitted changes.
    """
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        # By default, `git status` takes a lock and can leave it in the checkout, as on a full disk.
        command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if not (root / ".git").exists():
        return None
    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def processor() -> str:
    """Return a text with the name of the CPU and the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    if (listing := Path("/proc/cpuinfo")).exists():
        names = re.findall(r"^model name\s*: (.*)$", listing.read_text(), re.MULTILINE)
        name = names[0] if names else name
    return f"{name}, {usable_cores()} cores"


def environment(mesh: Mesh) -> dict[str, Any]:
    """Return the package versions, commit, machine, devices and mesh of a run as JSON values."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "versions": {package: version_of(package) for package in PACKAGES},
        "commit": commit(),
        "processes": jax.process_count(),
        "devices": [f"{device.device_kind} {device.id}" for device in mesh.devices.flat],
        "mesh": dict(mesh.shape),
    }
