"""The function `run`, which runs a command and exits this process with the command's exit code."""

import atexit
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
from can_jax.monitoring.timing import count_from_process_start
from can_jax.utils.errors import EXIT_REFUSED, EXIT_UNEXPECTED
from can_jax.utils.files import user_cache
from can_jax.utils.quiet import silence_threads

COMPILED_BYTES = 4 * 2**30  # The size at which JAX's compilation cache evicts programs.
EXIT_SECONDS = 60.0  # The longest time that a finished command may take to exit.
FAILED_EXIT_SECONDS = 5.0  # The longest time for a process that ends without the others of its job.


def run(command: Command) -> NoReturn:
    """Run a command with the arguments of this process, and exit with the command's exit code."""
    logging.use_absl_handler()  # Must precede the replacement of `sys.stderr`.
    forgive_streams()
    spare_absent_tpu()
    atexit.register(exit_if_stopped)  # Before imports whose exit handlers must run first.
    os.environ["MPLBACKEND"] = "Agg"  # A notebook may have set an interactive backend.
    warnings.filterwarnings("ignore", module="PIL")  # The pipeline reports undecodable images.
    keep_compiled()
    silence_threads()
    count_from_process_start()
    code = command()
    handler.finish(code)
    give_up_buffers()
    bound_exit(code)
    sys.exit(code)


def exit_if_stopped() -> None:
    """Exit without JAX's exit handler if a signal ended the command outside the training loop.

    A signal that ends the command may interrupt a compilation. A thread of XLA that is still
    compiling would crash after JAX's exit handler destroys JAX's client. Exit handlers that are
    registered after this function still run, because Python runs the handlers in reverse order of
    registration.
    """
    if handler.stopped_alone and handler.fixed_code is not None:
        give_up_buffers()
        os._exit(handler.fixed_code)


def bound_exit(code: int) -> None:
    """Force this process to exit after a timeout if it does not end by itself.

    Background threads of checkpoint writes or libraries can block forever. If this process
    ends before the other processes of its job, the timeout is shorter, so that they soon detect its
    exit.

    Args:
        code: The exit code of the process after the timeout.
    """
    alone = code in (EXIT_REFUSED, EXIT_UNEXPECTED) or handler.stopped_alone
    hurry = alone and jax.distributed.is_initialized()
    seconds = FAILED_EXIT_SECONDS if hurry else EXIT_SECONDS
    end = threading.Timer(seconds, lambda: os._exit(code))
    end.daemon = True
    end.start()


def keep_compiled() -> None:
    """Enable JAX's persistent compilation cache in the user's cache directory.

    Each combination of processor model and number of cores has its own folder, because a program
    compiled for one may not run on another. Incomplete cache entries are removed. The environment
    variable JAX_COMPILATION_CACHE_DIR takes precedence; if its value is empty, the cache is
    disabled. Without a writable cache folder, programs are compiled at each start.
    """
    cache = user_cache()
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or cache is None:
        return
    kind = hashlib.sha256(processor().encode()).hexdigest()[:8]
    folder = cache / f"compiled-{kind}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):  # JAX would warn for each program.
        return
    for entry in folder.glob("*-cache"):
        # A kill or a full disk can leave an incomplete entry, about which JAX would warn for each
        # program.
        if not entry.with_name(f"{entry.name.removesuffix('-cache')}-atime").exists():
            with contextlib.suppress(OSError):
                entry.unlink()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", COMPILED_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
