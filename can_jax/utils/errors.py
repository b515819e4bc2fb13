"""Exceptions that end a command early, their exit codes, and the formatting of error messages."""

import re
from collections.abc import Sequence

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
EXIT_REFUSED = 1  # an error of the user, which a restart would repeat
EXIT_UNEXPECTED = 70  # BSD's EX_SOFTWARE: a fault or a hang, which a restart may not repeat
EXIT_PREEMPTED = 75  # BSD's EX_TEMPFAIL: re-running the command resumes the run
EXIT_INTERRUPTED = 130  # Ctrl-C, by the convention of shells


class UserError(Exception):
    """An error that the user can correct, such as a wrong setting, with a one-line message."""


class LostLock(UserError):
    """An error that is raised when this process no longer holds the lock on its run directory."""


class Preempted(Exception):
    """An exception that is raised after a preempted run has saved its state."""


def printable(text: str) -> str:
    """Return a text with its control characters escaped, since terminals interpret them."""
    text = text.encode(errors="backslashreplace").decode()
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def listed(names: Sequence[str], one: str, several: str) -> str:
    """Join names, and append a verb in the singular or plural, as in ``a and b are``.

    Args:
        names: At least one name.
        one: The form of the verb for one name, such as ``is``.
        several: The form for several names, such as ``are``.
    """
    *first, last = names
    return f"{', '.join(first)} and {last} {several}" if first else f"{last} {one}"


def one_line(error: BaseException) -> str:
    """Return the first 400 characters of an exception's message on one line.

    The name of the exception's type precedes the message, except for a `UserError`.
    """
    bare = isinstance(error, KeyError) and len(error.args) == 1  # its `str` is a `repr`
    text = " ".join(str(error.args[0] if bare else error).split())[:400]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def reason_of(error: Exception) -> str:
    """Return the operating system's description of an error, such as `Permission denied`.

    If the operating system gave no description, `one_line` formats the error.
    """
    return getattr(error, "strerror", None) or one_line(error)
