"""Identification of the process that holds a lock, and a check whether it is still running."""

import os
import secrets
import socket
from pathlib import Path
from typing import Any

PROC = Path("/proc")
ENDED = ("Z", "X")  # states of a process that has ended but that its parent has not reaped

Owner = dict[str, Any]


def describe() -> Owner:
    """Return a description of this process, by which other processes can identify it.

    Containers can share a host name, and a process ID is meaningless outside its PID namespace. To
    recognize processes of this host, `Host` therefore compares the keys ``boot`` and ``namespace``,
    or only ``host`` on a system without boot IDs.
    """
    pid = os.getpid()
    return {
        "token": secrets.token_hex(8),
        "host": socket.gethostname(),
        "boot": boot_id(),
        "namespace": pid_namespace(),
        "pid": pid,
        "started": started(pid),
    }


def boot_id() -> str | None:
    """Return the kernel's boot ID, which is new after each boot; None on a system without boot
    IDs."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def pid_namespace() -> str | None:
    """Return the PID namespace of this process, or None on a system without namespaces.

    If `/proc` belongs to another PID namespace, return a random value, so that no other process
    tries to look up the ID of this process.
    """
    try:
        if os.readlink(PROC / "self") != str(os.getpid()):
            return secrets.token_hex(8)
        return os.readlink(PROC / "self/ns/pid")
    except OSError:
        return None


def started(pid: int) -> str | None:
    """Return the start time of a process on this host in clock ticks, or None if it has ended.

    On a system without ``/proc``, return "running" if the process exists.

    Args:
        pid: The process ID in the PID namespace of this process.
    """
    try:
        fields = (PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] in ENDED else fields[19]
    except (OSError, IndexError):
        pass
    if (PROC / "self").exists():
        return None
    try:  # there is no /proc, as on macOS
        os.kill(pid, 0)
    except PermissionError:
        return "running"
    except (OSError, OverflowError):
        return None
    return "running"


class Host:
    """A class that decides whether lock holders run on this host and whether they have ended.

    Args:
        me: The description of this process; see `describe`.
    """

    def __init__(self, me: Owner):
        self._me = me

    def has(self, owner: Owner) -> bool:
        """Return whether the process ID of a lock owner can be looked up on this host."""
        keys = ("boot", "namespace") if self._me["boot"] else ("boot", "host")
        return all(owner.get(key) == self._me[key] for key in keys)

    def shares_kernel(self, owner: Owner) -> bool:
        """Return whether a lock owner runs under the same kernel as this process. Only processes
        under the same kernel reliably see each other's file locks."""
        return bool(self._me["boot"]) and owner.get("boot") == self._me["boot"]

    def is_gone(self, owner: Owner) -> bool:
        """Return whether a lock owner has ended.

        Call this only if `has` returns True for the owner.
        """
        pid = owner.get("pid")
        return not isinstance(pid, int) or started(pid) != owner.get("started")
