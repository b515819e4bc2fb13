"""The protocol by which one process at a time holds a run directory.

Each holder has a record file ``.lock-NUMBER``, which no other process writes. A new process creates
the record with the next number, but only if the holder of the newest record has ended. If several
processes try to create the same record, only one succeeds. After a process has created a new
record, it removes the older records. A holder whose record is missing has lost the lease.

Processes under the same kernel also use a file lock on ``.lock``, which even a suspended holder
keeps. Processes on a different host than the holder check the heartbeats in the holder's record.
``lock.json`` is a copy of the holder's record under a fixed name.
"""

import contextlib
import time

from absl import logging

from can_jax.checkpoint.lease.files import Files
from can_jax.checkpoint.lease.owner import Host, Owner
from can_jax.checkpoint.lease.records import COPY, Record, Records, name_of, token, who
from can_jax.utils.errors import LostLock, one_line

BEAT_SECONDS = 10.0
STALE_BEATS = 3  # missed heartbeats after which a holder on another host counts as gone


class Clock:
    """A monotonic clock that, where supported, also runs while the system is suspended."""

    def now(self) -> float:
        """Return the time in seconds since an arbitrary start."""
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

    def sleep(self, seconds: float) -> None:
        """Block for the given number of seconds."""
        time.sleep(seconds)


class Lease:
    """A lease on a run directory, with methods to take, check, renew and release it.

    Args:
        files: The file operations on the directory.
        me: The description of this process; see `can_jax.checkpoint.lease.owner.describe`.
        name: The name by which messages call the directory, such as ``--workdir=PATH``.
        beat_seconds: The interval between heartbeats in seconds, which must be the same in all
            processes that share the directory.
        host: The object that decides whether a holder has ended; ``Host(me)`` by default.
        clock: The clock that measures waits; a `Clock` by default.

    Attributes:
        lost: The error that explains why the lease was lost or released; None if it was neither.
    """

    def __init__(
        self,
        files: Files,
        me: Owner,
        name: str,
        beat_seconds: float = BEAT_SECONDS,
        host: Host | None = None,
        clock: Clock | None = None,
    ):
        self._files, self._me, self._name = files, me, name
        self._records = Records(files)
        self._host, self._clock = host or Host(me), clock or Clock()
        self._beat_seconds, self._beat, self._missed = beat_seconds, 0, 0
        self._number = 0
        self.lost: Exception | None = None

    @property
    def stale_seconds(self) -> float:
        """The time without a heartbeat after which another process takes over the directory."""
        return STALE_BEATS * self._beat_seconds

    def take(self, wait: float = 0.0, wait_ending: float = 0.0) -> Record | None:
        """Take the lease; if another process holds the lease, wait for that process to end.

        Args:
            wait: The time in seconds to wait for a holder that has not announced that it will end.
            wait_ending: The time in seconds to wait for a holder that has announced that it will
                end.

        Returns:
            None if this process now holds the lease, else the record of the holder.

        Raises:
            OSError: The directory cannot be read or written.
        """
        begin, said = self._clock.now(), False
        while (holder := self._try()) is not None:
            ending = bool(holder.get("ending"))
            left = begin + (wait_ending if ending else wait) - self._clock.now()
            if left <= 0:
                return holder
            if ending and not said:
                said = True
                logging.warning(
                    "%s: %s is stopping, but still saving; waiting up to %.0f s for it to exit",
                    self._name, who(holder), left,
                )  # fmt: skip
            self._clock.sleep(min(self._beat_seconds / 10, left))
        return None

    def check(self) -> None:
        """Check that this process still holds the lease; call this before every write.

        If the storage fails, this method retries until shortly before another host could take over
        the lease.

        Raises:
            LostLock: Another process holds the lease, the lease was released, or its files were
                removed.
            OSError: The storage failed for so long that another host can soon take over the lease.
        """
        begin = self._clock.now()
        while True:
            try:
                return self._prove()
            except OSError as error:
                waited = self._clock.now() - begin
                if waited >= self.stale_seconds - self._beat_seconds and self.lost is None:
                    self.lost = OSError(
                        f"the lock of {self._name} could not be read for {waited:.0f} s: "
                        f"{one_line(error)}; this run ends, since another run may have taken over "
                        "the directory"
                    )
                if self.lost is not None:
                    raise self.lost from error
            self._clock.sleep(self._beat_seconds / 10)

    def beat(self, ending: bool = False) -> None:
        """Write a heartbeat for other hosts if this process still holds the lease.

        Args:
            ending: Whether to announce that the process is about to end.
        """
        try:
            self._prove()
            self._beat += 1
            self._files.update(name_of(self._number), self._text(ending=ending))
            self._missed = 0
        except LostLock:
            return
        except OSError as error:
            self._missed += 1
            if self._missed == STALE_BEATS - 1:
                logging.warning(
                    "the lock of %s could not be renewed in %d consecutive attempts: %s; if a run "
                    "on another host takes over the directory, this run ends",
                    self._name, self._missed, one_line(error),
                )  # fmt: skip

    def release(self) -> None:
        """Release the lease if this process still holds it."""
        try:
            self.check()
            with contextlib.suppress(OSError):
                if token(self._records.read(COPY)) == self._me["token"]:
                    self._files.remove(COPY)
                self._files.remove(name_of(self._number))
        except (LostLock, OSError):
            pass
        finally:
            self.lost = self.lost or LostLock(f"the lock of {self._name} was released")
        self._files.unlock()

    def _prove(self) -> None:
        """Check once, without retries, that this process holds the lease.

        Raises:
            LostLock: Another process holds the lease, the lease was released, or the record of this
                process was removed.
            OSError: The records cannot be read, or `check` has failed to read them for too long.
        """
        if self.lost is not None:
            raise self.lost
        taker = self._taker()
        if taker is None:
            return
        if taker:
            self.lost = LostLock(
                f"{self._name} was taken over by {who(taker)}, which found no heartbeat of this "
                f"run for {self.stale_seconds:.0f} s; this run ends and writes nothing more"
            )
        else:
            self.lost = LostLock(
                f"{self._name}: the lock of this run was removed; this run ends and writes "
                "nothing more, since another run may use the directory"
            )
        raise self.lost

    def _try(self) -> Record | None:
        """Try once to take the lease.

        Returns:
            None if this process now holds the lease, else the record of the holder. The returned
            record is empty if the holder is unknown.
        """
        alone = self._files.lock()
        held = False
        try:
            number, newest = self._records.newest()
            holder = self._holder(number, newest, alone)
            if holder is None:
                holder = self._claim(number, newest)
            held = holder is None
            return holder
        finally:
            if not held:
                self._files.unlock()

    def _holder(self, number: int, newest: Record | None, alone: bool) -> Record | None:
        """Return the record of the current holder, or None if all recorded holders have ended.

        Args:
            number: The number of the newest record; 0 if there is none.
            newest: The content of the newest record, or None if there is none.
            alone: Whether `Files.lock` returned True, which means that no other process is known to
                hold the file lock.
        """
        records = {} if newest is None else {name_of(number): newest}
        copy = self._records.read(COPY)
        if copy and (newest is None or copy.get("token") != newest.get("token")):
            records[COPY] = copy  # older versions write no other record
        for name, record in records.items():
            if not self._is_gone(name, record, alone):
                return record
            logging.warning(
                "%s: %s ended without releasing its lock; the lock is removed",
                self._name, who(record),
            )  # fmt: skip
        # Without a record, the owner of the kernel lock is about to write one or to end.
        return None if alone or records else {}

    def _is_gone(self, name: str, record: Record, alone: bool) -> bool:
        """Return whether the holder of a record has ended. This may block; see `_beats`."""
        if self._host.has(record):
            return self._host.is_gone(record)
        if not alone and ("pid" not in record or self._host.shares_kernel(record)):
            return False
        return not self._beats(name, record)

    def _beats(self, name: str, record: Record) -> bool:
        """Wait up to `stale_seconds` for a heartbeat of a holder; return whether there was one."""
        logging.warning(
            "%s is held by %s; waiting up to %.0f s for a heartbeat of that process",
            self._name, who(record), self.stale_seconds,
        )  # fmt: skip
        before = self._files.read(name)
        end = self._clock.now() + self.stale_seconds
        while before is not None and self._clock.now() < end:
            self._clock.sleep(self._beat_seconds / 100)
            now = self._files.read(name)
            if now is None:
                return False  # `_claim` finds out whether the lease was released or taken over
            if now != before:
                return True
        return False

    def _claim(self, gone: int, judged: Record | None) -> Record | None:
        """Create the record of this process, with the next number.

        Return None on success, else the newest record, or an empty dict if there is none.

        Args:
            gone: The number of the newest record, whose holder has ended; 0 if there is none.
            judged: The content of record ``gone`` when its holder was found to have ended; None if
                there is no record.
        """
        number = gone + 1
        if not self._files.create(name_of(number), self._text(claiming=True)):
            return self._records.newest()[1] or {}
        others = [other for other in self._records.numbers() if other != number]
        # Since `judged` was read, another process may have taken or even released the lease.
        same = judged is None or token(self._records.read(name_of(gone))) == token(judged)
        if any(other > gone for other in others) or (judged is None and others) or not same:
            self._files.remove(name_of(number))
            return self._records.newest()[1] or {}
        if not self._files.update(name_of(number), self._text()):
            return self._records.newest()[1] or {}  # another process has removed the record
        for other in others:
            self._files.remove(name_of(other))
        with contextlib.suppress(OSError):
            self._files.replace(COPY, self._text().rstrip() + "\n")
        self._number, self.lost = number, None  # `lost` describes an earlier lease
        try:
            self.check()
        except LostLock:  # another process has taken over in the meantime
            self.lost, self._number = None, 0
            if token(self._records.read(name_of(number))) == self._me["token"]:
                self._files.remove(name_of(number))
            return self._records.newest()[1] or {}
        return None

    def _taker(self) -> Record | None:
        """Return the record of the process that took over the lease, or None if none did.

        The result is an empty dict if this process's record is missing and the new holder is
        unknown.
        """
        copy = self._records.read(COPY)
        if copy and token(copy) != self._me["token"]:
            return copy
        for number in self._records.numbers():
            if number > self._number:
                record = self._records.read(name_of(number))
                if record is not None and not record.get("claiming"):
                    return record
        # The own record is read last: a successor removes it before it holds the lease.
        own = self._records.read(name_of(self._number))
        return None if token(own) == self._me["token"] else own or {}

    def _text(self, **state: bool) -> str:
        """Return the text of this process's record, with further state such as ``ending=True``."""
        return self._records.text(self._me | {"beat": self._beat} | state)
