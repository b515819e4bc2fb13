"""Run a command as this process, up to its exit code."""

import contextlib
import hashlib
import os
import sys
import threading
import warnings
from typing import NoReturn

import jax
from absl import logging

from can_jax.cli.command import Command
from can_jax.cli.output import forgive_streams, give_up_buffers
from can_jax.distributed.preemption import handler
from can_jax.distributed.runtime import processor, spare_absent_tpu
from can_jax.utils.errors import EXIT_REFUSED, EXIT_UNEXPECTED
from can_jax.utils.files import user_cache

COMPILED_BYTES = 4 * 2**30  # of compiled programs, at which the least recently used go
EXIT_SECONDS = 60.0  # that a program may take to end once all is done
FAILED_EXIT_SECONDS = 5.0  # likewise one of several processes that ends without the others


def run(command: Command) -> NoReturn:
    """Run a command on this process's arguments, and exit with its code."""
    logging.use_absl_handler()  # first: it looks for a handler of `sys.stderr` to replace
    forgive_streams()
    spare_absent_tpu()
    os.environ["MPLBACKEND"] = "Agg"  # figures are files; a notebook's backend may be missing here
    warnings.filterwarnings("ignore", module="PIL")  # what it cannot decode is counted and named
    keep_compiled()
    code = command()
    handler.finish(code)
    give_up_buffers()
    bound_exit(code)
    sys.exit(code)


def bound_exit(code: int) -> None:
    """End this process with an exit code once it has taken a minute to end by itself.

    Threads of a save or of a library may wait for an event that never comes. In a job of several
    processes the others may not know that this one ends: it waits for them for seconds only, since
    they learn of its end by its absence.
    """
    failed = code in (EXIT_REFUSED, EXIT_UNEXPECTED) or handler.stopped_alone
    hurry = failed and jax.distributed.is_initialized()
    seconds = FAILED_EXIT_SECONDS if hurry else EXIT_SECONDS
    end = threading.Timer(seconds, lambda: os._exit(code))
    end.daemon = True
    end.start()


def keep_compiled() -> None:
    """Let JAX keep what it compiles for the next start, in the user's cache: for each kind of
    processor apart, since what one can run another may not. JAX_COMPILATION_CACHE_DIR names another
    folder, or none if it is empty. Where the cache cannot be written, each start compiles."""
    cache = user_cache()
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or cache is None:
        return
    kind = hashlib.sha256(processor().encode()).hexdigest()[:8]
    folder = cache / f"compiled-{kind}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):  # JAX would warn at each program
        return
    for entry in folder.glob("*-cache"):
        # What a kill or a full disk left between two writes; JAX would warn of it at each program.
        if not entry.with_name(f"{entry.name.removesuffix('-cache')}-atime").exists():
            with contextlib.suppress(OSError):
                entry.unlink()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", COMPILED_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
