"""The ways in which a command ends before it is finished, and their exit codes."""

import re

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
EXIT_REFUSED = 1  # a mistake of the user's, which a restart would repeat
EXIT_UNEXPECTED = 70  # BSD's EX_SOFTWARE: a fault or a hang, which a restart may get past
EXIT_PREEMPTED = 75  # BSD's EX_TEMPFAIL: the same command resumes
EXIT_INTERRUPTED = 130  # Ctrl-C, as shells have it


class UserError(Exception):
    """Something a person can mend: the message is one line saying what, where and what to do."""


class LostLock(UserError):
    """The run directory is no longer held by this process."""


class Preempted(Exception):
    """The run was told to stop, and has saved its state."""


def printable(text: str) -> str:
    """Return a text without control characters, which a terminal would obey: they are escaped."""
    text = text.encode(errors="backslashreplace").decode()
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(error: BaseException) -> str:
    """Return an exception's message on one line, after its kind unless it is a `UserError`."""
    bare = isinstance(error, KeyError) and len(error.args) == 1  # whose `str` is a `repr`
    text = " ".join(str(error.args[0] if bare else error).split())[:400]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def reason_of(error: Exception) -> str:
    """Return why a file or a store failed: in the system's words if it has some."""
    return getattr(error, "strerror", None) or one_line(error)
