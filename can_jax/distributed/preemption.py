"""The handler of SIGTERM, SIGHUP and Ctrl-C, which a command installs when it starts.

A command installs `handler` before its slow imports, so this module imports only the standard
library and `can_jax.utils.errors`.
"""

import os
import select
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from can_jax.utils.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
GRACE_SECONDS = 5.0  # from a signal to the exit of a process whose main thread hangs
SAME_KEYSTROKE_SECONDS = 0.5  # a parent program may forward the same Ctrl-C a second time
RESUME = "run the same command to resume"


class Stopped(SystemExit):
    """The exception that ends a command when a signal arrives and there is nothing to save."""


class PreemptionHandler:
    """The handler of this process for SIGTERM, SIGHUP and SIGINT.

    A signal raises `Stopped` in the main thread, which ends the process. After a call of `defer`, a
    signal only sets `requested`; the training loop polls it, saves and ends. If a second Ctrl-C
    follows more than `SAME_KEYSTROKE_SECONDS` after the first, the process ends at once.

    Python runs signal handlers only in the main thread, which may be compiling for minutes. A
    second thread therefore reads the signals from a pipe as they arrive.

    Attributes:
        requested: The signal that requested this process to stop, or None.
        installed: Whether `install` was called in this process.
        fixed_code: The exit code set by `finish`, or None.
        stopped_alone: Whether this process raised `Stopped`, while the other processes of its job
            may continue.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self.installed = False
        self.fixed_code: int | None = None
        self.stopped_alone = False
        self._deferred = False
        self._ending = False
        self._reported = False
        self._send_again = False
        self._ctrl_c_at: float | None = None
        self._usual_hook = sys.unraisablehook

    @property
    def exit_code(self) -> int:
        """The exit code of a stopped command: 130 after Ctrl-C, otherwise 75."""
        return EXIT_INTERRUPTED if self.requested == signal.SIGINT else EXIT_PREEMPTED

    @property
    def cause(self) -> str:
        """The phrase that names the signal in messages, such as ``stopped by SIGTERM``."""
        interrupted = self.requested == signal.SIGINT
        name = "Ctrl-C" if interrupted else (self.requested or signal.SIGTERM).name
        return f"stopped by {name}"

    def install(self) -> None:
        """Install the signal handlers. Call this method in the main thread.

        SIGHUP and SIGINT stay ignored if the process was started with them ignored, as by
        ``nohup``.
        """
        self.installed = True
        received, sent = os.pipe()
        os.set_blocking(sent, False)
        signal.set_wakeup_fd(sent, warn_on_full_buffer=False)
        threading.Thread(target=self._read, args=(received,), daemon=True).start()
        for signum in SIGNALS:
            if signum == signal.SIGTERM or signal.getsignal(signum) != signal.SIG_IGN:
                signal.signal(signum, self._raise_stopped)
        os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._usual_hook, sys.unraisablehook = sys.unraisablehook, self._raise_again

    def defer(self) -> None:
        """Make later signals set `requested` instead of raising `Stopped`.

        The caller must poll `requested`, save the state and end the process.
        """
        self._deferred = True

    def resume(self) -> None:
        """Undo `defer`. A signal that arrived since `defer` counts as handled."""
        self._deferred, self._ending = False, self.requested is not None

    def finish(self, code: int) -> None:
        """Set the final exit code. Later signals have no effect, but a second Ctrl-C exits at once.

        Call this method in the main thread.
        """
        self.fixed_code = code
        if self.installed:
            _ignore_further()

    def request(self, signum: signal.Signals) -> None:
        """Record a signal. Ctrl-C takes precedence over SIGTERM, since a launcher may send both."""
        if self.requested is None or signum == signal.SIGINT:
            self.requested = signum

    def _raise_stopped(self, signum: int, frame: FrameType | None) -> None:
        """Raise `Stopped` once in the main thread, unless `defer` or `finish` was called.

        During an import, `Stopped` is not raised; `_read` repeats the signal as a SIGTERM after a
        short wait. An exception within the import of a C++ library such as jaxlib would cause a
        segmentation fault.
        """
        self.request(signal.Signals(signum))
        if self._deferred or self._ending or self.fixed_code is not None:
            return
        if _imports(frame):
            self._send_again = True
            return
        self._ending = self.stopped_alone = True
        _ignore_further()
        self._say_nothing_to_save()
        raise Stopped(self.exit_code)

    def _raise_again(self, unraisable: Any) -> None:
        """Make `_read` send SIGTERM if Python ignored `Stopped`, as it does in a destructor.

        Python would ignore an exception raised by this method, because the method is an
        `unraisablehook`.
        """
        if not isinstance(unraisable.exc_value, Stopped):
            self._usual_hook(unraisable)
            return
        self._ending = False
        signal.signal(signal.SIGTERM, self._raise_stopped)
        self._send_again = True

    def _read(self, received: int) -> None:
        """Record all signals, and end the process if the main thread does not react in time."""
        unanswered: float | None = None  # the time of the first signal without a response
        while True:
            ready, _, _ = select.select([received], [], [], 0.2 if self.requested else None)
            if self._send_again and not ready:
                self._send_again = False
                # SIGTERM, since a second Ctrl-C would end the process at once.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            for signum in os.read(received, 64) if ready else ():
                if signum in SIGNALS:
                    self._note(signal.Signals(signum))
            if self.requested is None or self._deferred or self.fixed_code is not None:
                unanswered = None
            elif unanswered is None:
                unanswered = time.monotonic()
            elif time.monotonic() - unanswered > GRACE_SECONDS:
                self._say_nothing_to_save()
                os._exit(self.exit_code)

    def _note(self, signum: signal.Signals) -> None:
        """Record a signal, or exit at once on a second Ctrl-C."""
        if signum == signal.SIGINT:
            now = time.monotonic()
            if self._ctrl_c_at is None:
                self._ctrl_c_at = now
            elif now - self._ctrl_c_at > SAME_KEYSTROKE_SECONDS:
                os.write(2, f"ended at once; {RESUME} from the last checkpoint\n".encode())
                os._exit(EXIT_INTERRUPTED if self.fixed_code is None else self.fixed_code)
        if self.fixed_code is None:
            self.request(signum)

    def _say_nothing_to_save(self) -> None:
        """Print once that there was nothing to save."""
        if not self._reported:
            self._reported = True
            os.write(2, f"{self.cause}: there was nothing new to save; {RESUME}\n".encode())


def _imports(frame: FrameType | None) -> bool:
    """Return whether a frame runs within an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _ignore_further() -> None:
    """Ignore SIGTERM and SIGHUP until the process ends.

    Python removes its signal handlers during exit, so a later signal would kill the process.
    """
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


_before_fork = threading.local()  # the signal mask of each thread


def _hold() -> None:
    """Block signals before a fork, so that none arrives in the child before `_forget` has run."""
    _before_fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _release() -> None:
    """Restore the signal mask of this thread after a fork."""
    signal.pthread_sigmask(signal.SIG_SETMASK, _before_fork.mask)


def _forget() -> None:
    """Restore the default signal actions in a forked child, and detach it from the signal pipe."""
    signal.set_wakeup_fd(-1)
    for signum in SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)
    _release()


handler = PreemptionHandler()
