"""The end of a process that cannot go on: the place of every thread, one line, and exit code 70."""

import contextlib
import ctypes
import faulthandler
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

WRITE_SECONDS = 5.0  # that a disk may take for the file, which may be the cause, or a full pipe
DEAD_SECONDS = 600.0  # without Python, after which a process of a job is ended
_folder: Path | None = None
_label = ""
_handlers: list[object] = []  # C keeps no reference to them


def keep_stacks_in(folder: str, label: str) -> None:
    """Write the stacks to a folder too, from now on.

    Args:
        folder: A local folder; a URL is not used.
        label: What tells this process from others of its job.
    """
    global _folder, _label
    _folder, _label = None if "://" in folder else Path(folder), label


def abort(message: str, stacks: bool = True) -> NoReturn:
    """End this process. Whatever it waits for cannot be interrupted in a gentler way.

    Args:
        message: The last line.
        stacks: Print the place of every thread before it.
    """
    places = _places()
    for write in (_to_file, _to_stderr):
        arguments = (message, places if stacks or write is _to_file else "")
        writing = threading.Thread(target=write, args=arguments, daemon=True)
        with contextlib.suppress(RuntimeError):  # Python is at its end
            writing.start()
            writing.join(WRITE_SECONDS)
    os._exit(EXIT_UNEXPECTED)


def abort_on_sigabrt(message: str) -> None:
    """Turn the end that a C++ library brings about into one with a message.

    JAX's service aborts each process of a job, from a thread of its own, once one of them is gone.
    Python's handlers would run in the main thread, which by then waits for the others. Call it in a
    job of several processes only, where a process that is suspended for a minute is lost anyway. A
    later call replaces the message.
    """
    if not _handlers:
        threading.Thread(target=_prove_alive, daemon=True).start()

    def answer(_: int) -> None:
        if (code := preemption.handler.fixed_code) is not None:
            os._exit(code)  # this process was at its end, and waited for the others to leave, too
        abort(message)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(answer)
    _handlers.append(handler)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


def _prove_alive() -> None:
    """Let a timer in C end this process once Python has not run for long.

    Where an abort comes while a thread in C holds the interpreter, its handler never runs.
    """
    while True:
        faulthandler.dump_traceback_later(DEAD_SECONDS, exit=True)
        time.sleep(DEAD_SECONDS / 10)


def _places() -> str:
    """Return the place of every thread.

    It goes through memory: `faulthandler` lets no other thread run while it writes, and a full
    pipe or a disk that hangs would hold it for ever.
    """
    in_memory = getattr(os, "memfd_create", None)  # on Linux
    with open(in_memory("stacks"), "w+b") if in_memory else tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def _to_file(message: str, places: str) -> None:
    if _folder is None:
        return
    name = time.strftime(f"stacks-%Y%m%d-%H%M%S{_label}.txt")
    with contextlib.suppress(OSError):
        (_folder / name).write_text(f"{message}\n\n{places}")


def _to_stderr(message: str, places: str) -> None:
    with contextlib.suppress(Exception):
        print(f"{places}error: {message}", file=sys.stderr, flush=True)
