"""The forced exit of a process that cannot continue: thread stacks, a message, and exit code 70."""

import contextlib
import ctypes
import faulthandler
import functools
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NoReturn

from can_jax.distributed import preemption
from can_jax.utils.errors import EXIT_UNEXPECTED

WRITE_SECONDS = 5.0  # the time limit of each write, which a hung disk or a full pipe can block
DEAD_SECONDS = 600.0  # a process of a job is ended if Python does not run for this time
_folder: Path | None = None
_label = ""
_handlers: list[object] = []  # keeps the C callbacks alive; Python would free them otherwise


def keep_stacks_in(folder: str, label: str) -> None:
    """Set a folder to which `abort` also writes the thread stacks.

    Args:
        folder: The path of a local folder; for a URL, `abort` writes no file.
        label: A suffix of the file name that distinguishes this process from the others of its job.
    """
    global _folder, _label
    _folder, _label = None if "://" in folder else Path(folder), label


def abort(message: str, stacks: bool = True) -> NoReturn:
    """Print a message and exit at once with code 70.

    The process does not wait for other threads, since a blocked collective operation cannot be
    interrupted. Writing to a file and writing to stderr take at most `WRITE_SECONDS` each.

    Args:
        message: The error message, printed as the last line.
        stacks: Whether to print the stack of every thread before the message. If ``stacks`` is
            False, the stacks are written only to the folder that `keep_stacks_in` sets.
    """
    report(message, stacks)
    os._exit(EXIT_UNEXPECTED)


def may_end_process() -> bool:
    """Return whether this process runs a command of `can_jax`, or is part of a multi-process job.

    A function of `can_jax` must not end another program that calls it, such as a notebook.
    """
    return preemption.handler.installed or bool(_handlers)


def report(message: str, stacks: bool = True) -> None:
    """Print the stack of every thread and an error message, as `abort` does.

    Args:
        message: The error message, printed as the last line.
        stacks: Whether to print the stacks. If ``stacks`` is False, the stacks are written only to
            the folder that `keep_stacks_in` sets.
    """
    dump = _stacks()
    for write in (_to_file, _to_stderr):
        arguments = (message, dump if stacks or write is _to_file else "")
        writing = threading.Thread(target=write, args=arguments, daemon=True)
        with contextlib.suppress(RuntimeError):  # Python is shutting down
            writing.start()
            writing.join(WRITE_SECONDS)


def abort_on_sigabrt(message: str) -> None:
    """Install a SIGABRT handler that calls `abort` with a message.

    JAX's coordination service raises SIGABRT in every process of a job once one process is lost.
    The handler is a C callback, since Python would run its handlers in the main thread, which may
    be blocked in a collective operation. If `can_jax.distributed.preemption.handler` already has a
    final exit code, the process exits with that code and prints no message.

    Call this function only in jobs of several processes. The timer that this function starts also
    ends a process that was suspended for `DEAD_SECONDS`. In jobs of several processes, JAX treats a
    suspended process as lost after a minute. Another call of this function replaces the message.
    """
    if not _handlers:
        threading.Thread(target=_prove_alive, daemon=True).start()

    def answer(_: int) -> None:
        if (code := preemption.handler.fixed_code) is not None:
            os._exit(code)  # This process had finished, and was only waiting for the others.
        abort(message)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(answer)
    _handlers.append(handler)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


def dump_stacks_after(seconds: float | None) -> None:
    """Start or restart a timer that prints the stack of every thread.

    The timer is in C, so it also expires while a C extension holds the GIL and no Python thread can
    run. The timer does not end the process, which may only have been suspended. In a job of several
    processes this function has no effect, since `abort_on_sigabrt` uses the same timer.

    Args:
        seconds: The time until the stacks are printed; None cancels the timer.
    """
    if _handlers:
        return
    if seconds is None:
        faulthandler.cancel_dump_traceback_later()
    else:
        faulthandler.dump_traceback_later(seconds, file=_stderr())


@functools.cache
def _stderr() -> int:
    """Return a file descriptor of stderr whose writes do not block, where the system allows this.

    A blocked write of the stack dump would stop the whole program. When restarting the
    timer, `dump_stacks_after` would wait for the blocked write while holding the GIL.
    """
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY
        return os.open("/proc/self/fd/2", flags)
    except OSError:  # Stderr is a socket, for example.
        return 2


def _prove_alive() -> None:
    """Keep resetting two timers, which end this process once Python has not run for `DEAD_SECONDS`.

    The SIGABRT handler of `abort_on_sigabrt` cannot run while a C thread holds the GIL. The first
    timer, in C, then prints the stacks. The second one ends the process by SIGALRM, even if the
    stacks cannot be written: its default action needs no interpreter. `launch/processes.sh`
    restarts a job after a signal, but not after the exit code 1 of `faulthandler`.
    """
    while True:
        faulthandler.dump_traceback_later(DEAD_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, DEAD_SECONDS + WRITE_SECONDS)
        time.sleep(DEAD_SECONDS / 10)


def _stacks() -> str:
    """Return the stack of every thread as text.

    No other Python thread runs while `faulthandler` writes, so a full pipe or a hung disk would
    block the whole process. On Linux, `faulthandler` writes to an in-memory file, which cannot
    block.
    """
    in_memory = getattr(os, "memfd_create", None)  # on Linux
    with open(in_memory("stacks"), "w+b") if in_memory else tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def _to_file(message: str, dump: str) -> None:
    if _folder is None:
        return
    name = time.strftime(f"stacks-%Y%m%d-%H%M%S{_label}.txt")
    with contextlib.suppress(OSError):
        (_folder / name).write_text(f"{message}\n\n{dump}")


def _to_stderr(message: str, dump: str) -> None:
    with contextlib.suppress(Exception):
        print(f"{dump}error: {message}", file=sys.stderr, flush=True)
