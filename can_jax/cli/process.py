"""Prepare the process of a command: memory in huge pages, signals, threads, garbage collection."""

import gc
import os
import signal
import sys
from pathlib import Path

from can_jax.distributed import preemption
from can_jax.utils.cpu import schedulable_cores, usable_cores

TUNABLES = "GLIBC_TUNABLES"
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
NEW_OBJECTS = 100_000  # between collections, which else are a tenth of the time to the first step


def prepare() -> None:
    """Prepare this process for a command. Call it before anything heavy is imported.

    Starts the program anew once, to have memory in huge pages, and installs the signal handler.
    """
    bound_threads()
    _ask_for_huge_pages()
    preemption.handler.install()
    gc.set_threshold(NEW_OBJECTS)


def bound_threads() -> None:
    """Let XLA start as many threads as a container's CPU quota allows; it counts all cores."""
    cores = usable_cores()
    if cores < schedulable_cores():
        os.environ.setdefault("NPROC", str(cores))  # which XLA reads


def _ask_for_huge_pages() -> None:
    """Start this program again with huge pages, if they would come of it. Who set
    ``GLIBC_TUNABLES``, to nothing even, is left alone.

    XLA's CPU backend takes a step's temporaries from the kernel and gives them back after it. In
    pages of 4 KiB that costs a fifth of the step: each is emptied and entered anew. glibc asks for
    pages of 2 MiB only if it is told so before a program starts.
    """
    if TUNABLES in os.environ or not on_demand():
        return
    os.environ[TUNABLES] = "glibc.malloc.hugetlb=1"
    # A signal that comes meanwhile waits for the handler of the program that is started.
    signal.pthread_sigmask(signal.SIG_BLOCK, preemption.SIGNALS)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def on_demand() -> bool:
    """Whether huge pages are given to who asks for them, and our C library, glibc 2.35 or newer,
    can ask."""
    try:
        kind, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        enabled = ENABLED.read_text()
    except (AttributeError, OSError, ValueError):  # not Linux, or not glibc
        return False
    release = tuple(int(part) for part in version.split(".")[:2])
    return kind == "glibc" and release >= (2, 35) and "[madvise]" in enabled
