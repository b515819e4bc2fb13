"""The `Command` class, which parses flags, runs a function, and turns errors into messages and exit
codes."""

import contextlib
import copy
import functools
import logging as python_logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from unittest.mock import patch

import jax
from absl import flags, logging

from can_jax.cli.flags import Flags
from can_jax.cli.mistakes import missing_value, nearest_option, plain_message
from can_jax.cli.modules import MODULES, import_modules
from can_jax.distributed.preemption import RESUME, Stopped, handler
from can_jax.utils.errors import (
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_UNEXPECTED,
    Preempted,
    UserError,
    one_line,
    printable,
)
from can_jax.utils.extras import missing_package
from can_jax.utils.files import checked_path
from can_jax.utils.progress import end_line
from can_jax.utils.quiet import host_logging

# Words in the messages of errors that JAX raises when another process of the job has ended.
LOST = re.compile(r"Gloo|NCCL|UNAVAILABLE|[Cc]oordination ?[Ss]ervice|Connection (reset|closed)")
HELP = ("--help", "-help", "-h", "--helpfull")
DEBUG = re.compile(r"--?debug(=(true|t|yes|y|1))?", re.IGNORECASE)


class OneLine(python_logging.Formatter):
    """A formatter that renders a log record as one printable line."""

    def format(self, record: python_logging.LogRecord) -> str:
        """Return the level and the message of a record as one line."""
        end_line()
        return f"{record.levelname}: {printable(record.getMessage())}"


class _Ended(Exception):
    """An exception that ends a command with exit code 0 after an option such as ``--help``."""


class Command:
    """A command of `can-jax`: a callable that takes a list of arguments and returns an exit code.

        COMMAND = Command(__doc__)
        WORKDIR = COMMAND.flags.path("workdir", "The run directory.")

        @COMMAND.runs
        def main() -> None: ...

        code = main(["--workdir=runs/l"])

    The exit code is 0 on success, and 1 for a `UserError` or a missing package that training needs.
    The exit code is 75 if a signal such as SIGTERM stopped the command, 130 if Ctrl-C stopped the
    command, and 70 for any other error.

    Args:
        usage: The text that ``--help`` prints above the flags.
        arguments: The names of the positional arguments; brackets mark optional arguments. If the
            name of the last argument ends in `...`, this argument takes all remaining values.
        web: Whether positional arguments may be URLs of web servers.
        complete: A function that takes the command-line arguments, and returns them with missing
            options added; by default, no options are added.
        more_help: A function that returns the text that ``--help`` prints after the flags.

    Attributes:
        given_argv: The arguments of the latest call, without the options that ``complete`` adds.
    """

    def __init__(
        self,
        usage: str | None,
        *arguments: str,
        web: bool = False,
        complete: Callable[[list[str]], list[str]] = list,
        more_help: Callable[[], str] = str,
    ):
        self.flags = Flags()
        self.given_argv: list[str] = []
        self._complete, self._more_help = complete, more_help
        self.flags.switch("debug", False, "On an error, print the full traceback.")
        self.flags.items(
            MODULES, None,
            "Comma-separated Python files or modules to import before other options are parsed. "
            "They can register objectives, data sources, callbacks and more; see docs/extend.md.",
        )  # fmt: skip
        self._usage, self._arguments, self._web = usage or "", arguments, web
        self._function: Callable[..., None] = lambda *_: None
        self._defined: dict[str, object] | None = None

    def runs(self, function: Callable[..., None]) -> "Command":
        """Register a function as the body of the command, and return the command; used as a
        decorator.

        The function gets the positional arguments as strings.
        """
        self._function = function
        functools.update_wrapper(self, function)
        return self

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run the command, and return its exit code.

        Args:
            argv: The arguments without the program name; by default ``sys.argv[1:]``.
        """
        self.given_argv = list(map(str, sys.argv[1:] if argv is None else argv))
        arguments = self._complete(self.given_argv)
        # ml_collections reads the keys of a recipe from sys.argv.
        argv_of_process = patch.object(sys, "argv", [sys.argv[0], *arguments])
        with argv_of_process, host_logging(), _lines_of_messages():
            return self._exit_code(arguments)

    def _exit_code(self, argv: list[str]) -> int:
        code = EXIT_UNEXPECTED
        reported: BaseException | None = None
        try:
            arguments = self._parse(argv)
            sys.argv[1:] = self.given_argv  # The run's history has the command as it was given.
            self._function(*arguments)
            return 0
        except _Ended:
            return 0
        except Preempted as stop:
            print(stop, file=sys.stderr)
            return handler.exit_code
        except Stopped:
            return handler.exit_code
        except UserError as error:
            code, message, reported = EXIT_REFUSED, str(error), error
        except KeyboardInterrupt as error:  # Only if another program calls the command.
            code, message, reported = EXIT_INTERRUPTED, f"interrupted; {RESUME}", error
        except Exception as error:
            reported = error
            if isinstance(error, ModuleNotFoundError) and (lacks := missing_package(error.name)):
                code, message = EXIT_REFUSED, str(lacks)
            elif jax.distributed.is_initialized() and LOST.search(str(error)):
                gone = "another process of the job, or its host, has died"
                message = f"{gone} ({one_line(error)[:200]}); {RESUME} from the last checkpoint"
            else:
                message = f"{one_line(error)} (unexpected error; --debug prints the traceback)"
        if any(map(DEBUG.fullmatch, argv)):
            traceback.print_exception(reported)
        print(f"error: {printable(message)}", file=sys.stderr)
        return code

    def _parse(self, argv: list[str]) -> list[str]:
        """Parse the flags, and return the positional arguments.

        Raises:
            UserError: An option or its value is invalid, an argument is missing or unexpected, or
                a module of ``--modules`` cannot be imported.
            _Ended: The arguments contain ``--help`` or ``--version``.
        """
        values = self._fresh()
        if any(argument in HELP for argument in argv):
            flags_help = values.get_help()
            print(f"{self._usage.strip()}\n\nflags:\n{flags_help}{self._more_help()}")
            raise _Ended
        if "--version" in argv:
            from can_jax import __version__

            print(f"can_jax {__version__}")
            raise _Ended
        import_modules(argv)
        try:
            if swallowed := missing_value(values, argv):
                raise UserError(swallowed)
            rest = values([sys.argv[0], *argv])[1:]
            if swallowed := missing_value(values, argv):  # The types of keys are known now.
                raise UserError(swallowed)
        except UserError:
            raise
        except Exception as error:  # Raised by absl or ml_collections.
            raise UserError(plain_message(values, error, argv)) from error
        for missing in self._arguments[len(rest) :]:
            if not missing.startswith("["):
                raise UserError(f"the argument {missing} is missing; see --help")
        many = self._arguments and self._arguments[-1].endswith("...")
        for extra in rest[len(self._arguments) :] if not many else ():
            form = nearest_option(values, extra) or "; write options as --name=value, see --help"
            raise UserError(f"unexpected argument {extra!r}{form}")
        return [checked_path(argument, self._web) for argument in rest]

    def _fresh(self) -> flags.FlagValues:
        """Reset all flags to their defaults, and return the flags. Values from an earlier call of
        the command are discarded."""
        values = self.flags.values
        memo = {id(values): values}  # The flag of a recipe refers to `values`.
        if self._defined is None:
            self._defined = copy.deepcopy(vars(values), memo)
        memo = {id(values): values}
        vars(values).clear()
        vars(values).update(copy.deepcopy(self._defined, memo))
        return values


@contextlib.contextmanager
def _lines_of_messages() -> Iterator[None]:
    """Print logged warnings and errors as single lines on stderr while the context is active."""
    # No command uses absl's global flags, but absl would warn that they are not parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    handler_of_absl = logging.get_absl_handler()
    stream_handler = handler_of_absl.python_handler
    before = logging.get_verbosity(), stream_handler.formatter, stream_handler.stream
    level = logging.get_absl_logger().level
    logging.set_verbosity(logging.WARNING)
    handler_of_absl.setFormatter(OneLine())
    stream_handler.setStream(sys.stderr)
    try:
        yield
    finally:
        logging.set_verbosity(before[0])
        logging.get_absl_logger().setLevel(level)  # A level of 0 inherits the root logger's level.
        handler_of_absl.setFormatter(before[1])
        stream_handler.setStream(before[2])
