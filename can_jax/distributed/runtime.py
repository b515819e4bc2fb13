"""From one process or many to one program: its start, its meeting points, what it runs on."""

import contextlib
import glob
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
from can_jax.utils.errors import UserError, one_line

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-cpu", "numpy")


# Seconds after which a process without a heartbeat is gone; JAX then aborts the others.
HEARTBEAT_SECONDS = 60
# Seconds that processes wait for each other, at most. Others may look through their data, or save.
BARRIER_SECONDS = 7200.0


def surroundings() -> str | None:
    """What starts several processes here, and tells each which one it is; None for nothing."""
    environment = os.environ
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in environment:
        return "SLURM"
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI"
    if tpu_chips() and importlib.util.find_spec("libtpu"):
        return "Cloud TPU"  # or GKE
    return None


def tpu_chips() -> list[str]:
    """The device files of this machine's TPU chips."""
    return glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")


def spare_absent_tpu() -> None:
    """Where the library for TPUs is installed without a TPU, as for `can_jax.plan`, keep it from
    asking the network which one this is, and from complaining at length that nobody knows. Call
    before JAX starts a backend."""
    if not tpu_chips():
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def start(
    coordinator: str | None, processes: int | None, process: int | None, timeout: int
) -> None:
    """Join this process with the others of its job. Call before anything else of JAX.

    On Cloud TPU, GKE, SLURM and Open MPI nothing has to be given. A single process needs no start.

    Args:
        coordinator: `host:port` of process 0, reachable from all.
        processes: how many there are.
        process: which one this is.
        timeout: seconds to wait for the others.

    Raises:
        UserError: some of the three are missing, or not all processes came.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    found = surroundings()
    if 0 < len(missing) < 3 and not found:
        raise UserError(
            f"{', '.join(missing)} is missing: give --coordinator=HOST:PORT, "
            "--processes and --process together"
        )
    if len(missing) == 3 and found is None:
        return
    if processes is not None and process is not None and not 0 <= process < processes:
        raise UserError(
            f"--process={process}: between 0 and {processes - 1}, one less than --processes"
        )
    where = f"as {found} tells" if missing else f"at --coordinator={coordinator}"
    hint = (
        f"the processes of this job did not find each other {where} within --start_timeout="
        f"{timeout} s: is every one of them started, and can each reach that host and port?"
    )
    if proxies := [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy")]:
        hint += f" {' and '.join(proxies)} in the environment may stand in the way"
    gone = (
        "another process of the job, or its host, is gone or gave no sign of life for "
        f"{HEARTBEAT_SECONDS} s. The same command resumes from the last checkpoint"
    )
    abort_on_sigabrt(f"this process ends: {gone}")  # one may be gone before all have come
    try:
        with give_up_after(timeout, hint):  # left to itself, JAX ends the program with a stack dump
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                initialization_timeout=timeout + 60,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=90,  # JAX aborts then; a command ends by itself before
            )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{hint} ({one_line(error)[:200]})") from error
    abort_on_sigabrt(f"process {jax.process_index()} of {jax.process_count()} ends: {gone}")
    demand_same("job (CAN_JAX_JOB)", os.environ.get("CAN_JAX_JOB", ""))


@contextlib.contextmanager
def give_up_after(seconds: float, message: str, stacks: bool = False) -> Iterator[None]:
    """End the program with one line, or after its stacks, if what is inside takes longer."""
    watch = threading.Timer(seconds, abort, [message, stacks])
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


@contextlib.contextmanager
def meeting(name: str, seconds: float = BARRIER_SECONDS) -> Iterator[None]:
    """Around anything for which every process has to come: it ends in time, or the program does."""
    if jax.process_count() == 1:
        yield
        return
    me = f"process {jax.process_index()} of {jax.process_count()}"
    started = time.perf_counter()
    with give_up_after(
        seconds,
        f"{me} waited {seconds:.0f} s at {name!r} for the others; one of them is gone or stuck",
        stacks=True,
    ):
        yield
    logging.info("%s: all processes after %.2f s", name, time.perf_counter() - started)


def gather(name: str, value: Any) -> np.ndarray:
    """The value of every process, stacked. All have to ask.

    Args:
        name: of this meeting point, for messages.
        value: an array, of the same shape everywhere.
    """
    if jax.process_count() == 1:
        return np.asarray(value)[None]
    with meeting(name):
        return np.asarray(multihost_utils.process_allgather(value))


class Stopping:
    """The signals that ask the job to stop, for a loop that polls them after each step and saves.

    With several processes all of them stop after the same step, whichever was told. Inside another
    program, such as a notebook, only SIGTERM is handled, and only in the main thread.
    """

    def __init__(self) -> None:
        self._several = jax.process_count() > 1
        self._forwarded = False
        self._before: Any = None
        main = threading.current_thread() is threading.main_thread()
        if main and not handler.installed and not self._several:
            self._before = signal.signal(signal.SIGTERM, lambda *_: handler.request(signal.SIGTERM))

    def begin(self) -> None:
        """Answer from now on, by `after`, rather than end the process at once."""
        handler.defer()

    def after(self, step: int) -> bool:
        """Return whether to stop after this step. Collective: every process must call this."""
        if not self._several:
            return handler.requested is not None
        if handler.requested and not self._forwarded:
            self._forwarded = True
            os.kill(os.getpid(), signal.SIGTERM)  # which JAX's service takes, and tells the others
        return bool(multihost_utils.reached_preemption_sync_point(step))

    def close(self) -> None:
        """Leave the signals to whoever had them before."""
        handler.resume()
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            handler.requested = None


def demand_same(
    name: str, text: str, hint: str = "start all of them with the same command"
) -> None:
    """Check that every process was given the same. Collective: every process must call this.

    Args:
        name: What is compared, for messages.
        text: What this process was given.
        hint: What to do where they differ.

    Raises:
        UserError: A process was not given what process 0 was.
    """
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], np.int32)
    others = gather(f"same {name}", digest)
    different = np.flatnonzero((others != others[0]).any(axis=1))
    if len(different):
        raise UserError(
            f"processes {', '.join(map(str, different))} were given another {name} than process 0; "
            f"{hint}"
        )


def version_of(package: str) -> str | None:
    """The installed version of a package, None without it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the checkout this package is imported from, `+changes` if it has any."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if not (root / ".git").exists():
        return None
    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def processor() -> str:
    """The name of this machine's processor, and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    if (listing := Path("/proc/cpuinfo")).exists():
        names = re.findall(r"^model name\s*: (.*)$", listing.read_text(), re.MULTILINE)
        name = names[0] if names else name
    return f"{name}, {usable_cores()} cores"


def environment(mesh: Mesh) -> dict[str, Any]:
    """Versions, devices, mesh and commit, as plain JSON values."""
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
