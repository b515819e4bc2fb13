"""The two ways in which a command ends before it is finished, and their exit codes."""

EXIT_ERROR = 1
EXIT_PREEMPTED = 75  # BSD's EX_TEMPFAIL: start the same command again


class UserError(Exception):
    """Something a person can mend: the message is one line saying what, where and what to do."""


class Preempted(Exception):
    """The run was told to stop, and has saved its state."""


def one_line(error: BaseException) -> str:
    """Return an exception's message on one line, after its kind unless it is a `UserError`."""
    bare = isinstance(error, KeyError) and len(error.args) == 1  # whose `str` is a `repr`
    text = " ".join(str(error.args[0] if bare else error).split())[:400]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
