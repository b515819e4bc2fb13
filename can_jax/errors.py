"""The two ways in which a command ends before it is finished, and their exit codes."""

EXIT_ERROR = 1
EXIT_PREEMPTED = 75  # BSD's EX_TEMPFAIL: start the same command again


class UserError(Exception):
    """Something a person can mend: the message is one line saying what, where and what to do."""


class Preempted(Exception):
    """The run was told to stop, and has saved its state."""
