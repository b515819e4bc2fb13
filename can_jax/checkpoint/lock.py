"""An exclusive lock on a run directory, renewed by a thread and checked before writes."""

import contextlib
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
from etils import epath

from can_jax.checkpoint.lease.files import files_of
from can_jax.checkpoint.lease.owner import describe
from can_jax.checkpoint.lease.protocol import BEAT_SECONDS, Lease
from can_jax.checkpoint.lease.records import who
from can_jax.distributed.preemption import handler
from can_jax.distributed.runtime import gather
from can_jax.utils.errors import LostLock, UserError, reason_of

WAIT_SECONDS = 3.0  # the time that a start waits for a run that has not announced its end
# Seconds that a start waits for a run that has announced its end, but is still saving. Meanwhile
# the other processes of the starting job wait for process 0, in a collective operation.
WAIT_ENDING_SECONDS = 500.0
LOOK_SECONDS = 0.5  # the maximum interval between checks for a stop signal to this process


class InUse(UserError):
    """The error raised if another run holds the lock of the run directory."""


class RunLock:
    """The lock that this job holds on its run directory.

    Args:
        lease: The lease that process 0 of the job holds; None in the other processes.
    """

    def __init__(self, lease: Lease | None):
        self._lease = lease
        self._ending = False

    @property
    def ending(self) -> bool:
        """Whether this run is about to end. A newly started run waits for it to end."""
        return self._ending or handler.requested is not None

    def end_soon(self) -> None:
        """Announce that this run ends after its last save, so that a new run waits for it."""
        self._ending = True

    def check(self) -> None:
        """Check that this job still holds the lock; call this before every write to the directory.

        While the lock file cannot be read, this method retries and blocks; see `Lease.check`. In
        processes other than 0, this method does nothing.

        Raises:
            LostLock: Another run has taken over the directory, or the lock files were removed.
            OSError: The lock was unreadable for so long that another host may have taken it over.
        """
        if self._lease is not None:
            self._lease.check()

    def check_together(self) -> None:
        """Check that this job still holds the lock. Collective: every process must call this.

        Raises:
            LostLock: Another run has taken over the directory, or the lock files were removed. In
                processes other than 0, any failure of the check raises `LostLock`.
            OSError: The lock was unreadable for so long that another host may have taken it over.
        """
        error: Exception | None = None
        try:
            self.check()
        except (UserError, OSError) as lost:
            error = lost
        if gather("run lock", np.int32(error is not None))[0]:
            raise error or LostLock("process 0 lost the lock of the run directory; see its log")


@contextlib.contextmanager
def run_lock(
    workdir: epath.Path, wait: float | None = None, wait_ending: float | None = None
) -> Iterator[RunLock]:
    """Hold the lock of a run directory in a ``with`` block.

    Collective: every process must call this.

    Args:
        workdir: The run directory, which must exist.
        wait: The time in seconds to wait for a run that holds the directory and has not announced
            that it will end; `WAIT_SECONDS` by default.
        wait_ending: The time in seconds to wait for a run that has announced its end, but is still
            saving; `WAIT_ENDING_SECONDS` by default.

    Raises:
        InUse: Another run still holds the directory after the wait. In processes other than 0, any
            failure to take the lock raises `InUse`.
        UserError: The lock files cannot be read or written.
    """
    claim, refusal = None, None
    if jax.process_index() == 0:
        claim = Lease(files_of(workdir), describe(), f"--workdir={workdir}", BEAT_SECONDS)
        waits = (
            WAIT_SECONDS if wait is None else wait,
            WAIT_ENDING_SECONDS if wait_ending is None else wait_ending,
        )
        refusal = _take(claim, workdir, *waits)
    if gather("run lock", np.int32(refusal is not None))[0]:
        raise refusal or InUse(
            f"process 0 could not lock --workdir={workdir}; see its log for the reason"
        )
    done = threading.Event()
    lock = RunLock(claim)
    beats = threading.Thread(target=_beat, args=(claim, lock, done), daemon=True)
    beats.start()
    try:
        yield lock
    finally:
        done.set()
        beats.join(BEAT_SECONDS)  # a late heartbeat could recreate the record in a bucket
        if claim is not None:
            claim.release()


def _take(claim: Lease, workdir: epath.Path, wait: float, wait_ending: float) -> UserError | None:
    """Take a lease; return None on success, else the error to raise."""
    try:
        holder = claim.take(wait, wait_ending)
    except OSError as error:
        return UserError(
            f"--workdir={workdir} cannot be locked: {reason_of(error)}; make it writable, or give "
            "another --workdir"
        )
    if holder is None:
        return None
    return InUse(
        f"--workdir={workdir} is in use by {who(holder)}: wait for that run, stop it, or "
        "give another --workdir"
    )


def _beat(claim: Lease | None, lock: RunLock, done: threading.Event) -> None:
    """Renew a lease every `BEAT_SECONDS`, and at once when the run announces its end."""
    ending, last = False, time.monotonic()
    while claim is not None and not done.wait(min(LOOK_SECONDS, BEAT_SECONDS / 10)):
        if lock.ending != ending or time.monotonic() - last >= BEAT_SECONDS:
            ending, last = lock.ending, time.monotonic()
            claim.beat(ending)
