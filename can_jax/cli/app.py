"""How every command starts and ends: flags in, one clear line and an exit code out."""

import contextlib
import hashlib
import logging as python_logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Sequence

import jax
from absl import flags, logging

from can_jax.cli.mistakes import missing_value, nearest_option, plain_message
from can_jax.cli.output import forgive_streams, give_up_buffers
from can_jax.distributed.preemption import RESUME, Stopped, handler
from can_jax.distributed.runtime import processor, spare_absent_tpu
from can_jax.utils.errors import (
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_UNEXPECTED,
    Preempted,
    UserError,
    one_line,
    printable,
)
from can_jax.utils.files import expand_home, user_cache

# Words of errors that JAX raises where a process has ended that others were talking to.
LOST = re.compile(r"Gloo|NCCL|UNAVAILABLE|[Cc]oordination ?[Ss]ervice|Connection (reset|closed)")
COMPILED_BYTES = 4 * 2**30  # of compiled programs, at which the least recently used go
EXIT_SECONDS = 60.0  # that a program may take to end once all is done
FAILED_EXIT_SECONDS = 5.0  # likewise one that failed, of a job of several processes

DEBUG = flags.DEFINE_bool("debug", False, "On an error, show the whole trace.")


class OneLine(python_logging.Formatter):
    """Makes one printable line of a log record."""

    def format(self, record: python_logging.LogRecord) -> str:
        """Return the level and the message."""
        return f"{record.levelname}: {printable(record.getMessage())}"


def run(main: Callable[..., None], usage: str, arguments: Sequence[str] = ()) -> None:
    """Parse the flags, run ``main``, and exit.

    The exit code is 0 at the end, 1 for a mistake of the user's, 70 for an unexpected error, 75
    when the command was preempted and has saved, and 130 likewise after Ctrl-C.

    Args:
        main: the command; it reads its flags.
        usage: what ``--help`` prints above the flags.
        arguments: names of what is given without a flag, which ``main`` takes; in brackets those
            that can be left out.
    """
    logging.use_absl_handler()  # first: it looks for a handler of `sys.stderr` to replace
    forgive_streams()
    code = _exit_code(main, usage, arguments)
    handler.finish(code)
    give_up_buffers()
    bound_exit(code)
    sys.exit(code)


def bound_exit(code: int) -> None:
    """End this process with an exit code once it has taken a minute to end by itself. Threads of a
    save or of a library may wait for an event that never comes; the other processes of a job wait
    for one that has failed."""
    failed = code in (EXIT_REFUSED, EXIT_UNEXPECTED) and jax.distributed.is_initialized()
    seconds = FAILED_EXIT_SECONDS if failed else EXIT_SECONDS
    end = threading.Timer(seconds, lambda: os._exit(code))
    end.daemon = True
    end.start()


def _exit_code(main: Callable[..., None], usage: str, arguments: Sequence[str]) -> int:
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(OneLine())
    logging.get_absl_handler().python_handler.setStream(sys.stderr)
    spare_absent_tpu()
    os.environ["MPLBACKEND"] = (
        "Agg"  # figures are files; a notebook's backend is not installed here
    )
    keep_compiled()
    try:
        main(*_parse(usage, arguments))
    except Preempted as stop:
        print(stop, file=sys.stderr)
        return handler.exit_code
    except Stopped:
        return handler.exit_code
    except UserError as error:
        return _fail(str(error), EXIT_REFUSED)
    except KeyboardInterrupt:  # of a command inside another program
        return _fail(f"interrupted; {RESUME}", EXIT_INTERRUPTED)
    except Exception as error:
        if jax.distributed.is_initialized() and LOST.search(str(error)):
            message = f"another process of the job, or its host, is gone ({one_line(error)[:200]})"
            return _fail(f"{message}; {RESUME} from the last checkpoint", EXIT_UNEXPECTED)
        return _fail(f"{one_line(error)} (unexpected; --debug shows where)", EXIT_UNEXPECTED)
    return 0


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


def _parse(usage: str, arguments: Sequence[str]) -> list[str]:
    """Parse the flags, and return what is given without one; or answer ``--help`` and exit.

    Raises:
        UserError: an option or its value is wrong, or an argument is missing.
    """
    if any(argument in ("--help", "-help", "-h", "--helpfull") for argument in sys.argv[1:]):
        print(usage.strip() + "\n")
        print(flags.FLAGS.main_module_help() + "\n" + flags.FLAGS.module_help(__name__))
        sys.exit(0)
    try:
        if swallowed := missing_value(sys.argv[1:]):
            raise UserError(swallowed)
        rest = flags.FLAGS(sys.argv)[1:]
        if swallowed := missing_value(sys.argv[1:]):  # now that the types of keys are known
            raise UserError(swallowed)
    except UserError:
        raise
    except Exception as error:  # absl's, or ml_collections' for the keys of a recipe
        raise UserError(plain_message(error, sys.argv[1:])) from error
    for missing in arguments[len(rest) :]:
        if not missing.startswith("["):
            raise UserError(f"{missing} is missing; see --help")
    for extra in rest[len(arguments) :]:
        form = nearest_option(extra) or "; options look like --name=value, see --help"
        raise UserError(f"unexpected argument {extra!r}{form}")
    return [expand_home(argument) for argument in rest]


def _fail(message: str, code: int) -> int:
    """Print one line to stderr, after the trace if that was asked for, and return the code."""
    if any(argument in ("--debug", "--debug=true") for argument in sys.argv):
        traceback.print_exc()
    print(f"error: {printable(message)}", file=sys.stderr)
    return code
