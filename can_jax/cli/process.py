"""Process setup for commands: huge pages, signals, threads and garbage collection."""

import gc
import os
import signal
import sys
from pathlib import Path

from can_jax.distributed import preemption
from can_jax.utils.cpu import schedulable_cores, usable_cores

TUNABLES = "GLIBC_TUNABLES"
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# The number of allocations between garbage collections. With Python's default, collections take a
# tenth of the time to the first step.
NEW_OBJECTS = 100_000


def prepare() -> None:
    """Prepare this process for a command, before heavy imports such as JAX.

    This function limits XLA's threads, installs the preemption handler, and makes garbage
    collection less frequent. If the system supports huge pages, the program is restarted with them.
    """
    bound_threads()
    _ask_for_huge_pages()
    preemption.handler.install()
    gc.set_threshold(NEW_OBJECTS)


def bound_threads() -> None:
    """Limit XLA's threads to the CPU quota of the container. By default, XLA starts one thread per
    core, even beyond the quota."""
    cores = usable_cores()
    if cores < schedulable_cores():
        os.environ.setdefault("NPROC", str(cores))  # XLA reads it.


def _ask_for_huge_pages() -> None:
    """Re-execute this program with huge pages enabled, if the system supports them.

    If the environment variable ``GLIBC_TUNABLES`` is set, even to an empty string, nothing is done.

    In each train step, XLA's CPU backend requests memory for its temporary buffers from the
    operating system, and frees it afterwards. With pages of 4 KiB, clearing and mapping the
    temporary buffers takes a fifth of the step time. The C library requests pages of 2 MiB only if
    ``GLIBC_TUNABLES`` is set before the program starts.
    """
    if TUNABLES in os.environ or not on_demand():
        return
    os.environ[TUNABLES] = "glibc.malloc.hugetlb=1"
    # Signals stay blocked until the restarted program has installed its handler.
    signal.pthread_sigmask(signal.SIG_BLOCK, preemption.SIGNALS)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def on_demand() -> bool:
    """Return True if huge pages can be requested.

    The Linux kernel must provide huge pages on request (``madvise``), and the C library must be
    glibc 2.35 or newer.
    """
    try:
        library, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        enabled = ENABLED.read_text()
    except (AttributeError, OSError, ValueError):  # The system is not Linux, or not glibc.
        return False
    release = tuple(int(part) for part in version.split(".")[:2])
    return library == "glibc" and release >= (2, 35) and "[madvise]" in enabled
