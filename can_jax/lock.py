"""One run, one run directory: a lock that tells whose it is, and knows when that one is gone."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from can_jax.errors import UserError
from can_jax.files import replace_text
from can_jax.parallel.runtime import gather

BEAT_SECONDS = 10.0
STALE_BEATS = 3.0  # after so many that were missed, a holder on another host is gone


class InUse(UserError):
    """Another process has what this one wants."""


def _started(pid: int) -> str | None:
    """When a process of this host was started, in the kernel's ticks; None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        pass
    try:  # no /proc, as on macOS: at least whether there is one
        os.kill(pid, 0)
    except OSError:
        return None
    return "running"


def _me() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _started(pid), "beat": 0}


def _read(place: epath.Path) -> dict[str, Any] | None:
    try:
        held = json.loads(place.read_text())
    except (OSError, ValueError):
        return None  # none, or one that is being written
    return held if isinstance(held, dict) else None


def _holds(holder: dict[str, Any], place: epath.Path) -> bool:
    """Whether the holder of a lock is still there: on this host by its process, on another by its
    beats, for which this waits."""
    if holder["host"] == socket.gethostname():
        return _started(holder["pid"]) == holder["started"]
    logging.warning(
        "%s is held by process %s on %s; waiting %.0f s for a sign of it",
        place.parent, holder["pid"], holder["host"], STALE_BEATS * BEAT_SECONDS,
    )  # fmt: skip
    end = time.monotonic() + STALE_BEATS * BEAT_SECONDS
    while time.monotonic() < end:
        time.sleep(BEAT_SECONDS / 10)
        now = _read(place)
        if now is None:
            return False
        if now != holder:
            return True
    return False


def _take(place: epath.Path) -> dict[str, Any] | None:
    """Take a lock; gives its holder instead if there is one."""
    holder = _read(place)
    mine = _me()
    if holder is not None and holder != mine and _holds(holder, place):
        return holder
    if holder is not None:
        logging.warning(
            "%s: its last run, process %s on %s, is gone without saying so; going on",
            place.parent, holder["pid"], holder["host"],
        )  # fmt: skip
    place.write_text(json.dumps(mine))
    time.sleep(0.05)  # two that come at once: the last to write has it
    now = _read(place)
    return None if now is None or now == mine else now


@contextlib.contextmanager
def run_lock(workdir: epath.Path) -> Iterator[None]:
    """Hold the run directory. The first process of a job does; the others learn of the outcome.

    Raises:
        InUse: another run holds it.
    """
    place = workdir / "lock.json"
    other = _take(place) if jax.process_index() == 0 else None
    if gather("run lock", np.int32(other is not None))[0]:
        who = f"by process {other['pid']} on {other['host']}" if other else ""
        raise InUse(
            f"--workdir={workdir} is in use {who}: wait for that run, stop it, or give another "
            "--workdir"
        )
    done = threading.Event()

    def beat() -> None:
        mine = _me()
        while not done.wait(BEAT_SECONDS):
            mine["beat"] += 1
            with contextlib.suppress(OSError):  # a full disk is told of elsewhere
                replace_text(place, json.dumps(mine))

    if jax.process_index() == 0:
        threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        done.set()
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                place.unlink()
