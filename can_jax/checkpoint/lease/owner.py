"""The process that holds a lock: its identity, and whether it is still running."""

import os
import secrets
import socket
from pathlib import Path
from typing import Any

PROC = Path("/proc")
ENDED = ("Z", "X")  # states of a process that has ended but that its parent has not reaped

Owner = dict[str, Any]


def describe() -> Owner:
    """Describe this process for a lock, so that other starts can identify it.

    Containers can share a host name, and a process ID is meaningless outside its PID namespace. So
    `Host` compares ``boot`` and ``namespace``. It compares ``host`` only on a system without boot
    IDs.
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
    """Return the ID of this boot of the kernel, or None on a system without one."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def pid_namespace() -> str | None:
    """Return the PID namespace of this process, or None on a system without namespaces.

    If `/proc` belongs to another namespace, return a unique value, since no other process can then
    look this one up.
    """
    try:
        if os.readlink(PROC / "self") != str(os.getpid()):
            return secrets.token_hex(8)
        return os.readlink(PROC / "self/ns/pid")
    except OSError:
        return None


def started(pid: int) -> str | None:
    """Return the start time of a process of this host in kernel ticks, or None if it has ended.

    On a system without ``/proc``, return "running" for a process that exists.

    Args:
        pid: The process ID.
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
    """The lock holders as seen from this host.

    Args:
        me: The description of this process; see `describe`.
    """

    def __init__(self, me: Owner):
        self._me = me

    def has(self, owner: Owner) -> bool:
        """Return whether an owner's process ID can be looked up here."""
        keys = ("boot", "namespace") if self._me["boot"] else ("boot", "host")
        return all(owner.get(key) == self._me[key] for key in keys)

    def shares_kernel(self, owner: Owner) -> bool:
        """Return whether an owner runs under this kernel, so that kernel locks apply to both."""
        return bool(self._me["boot"]) and owner.get("boot") == self._me["boot"]

    def is_gone(self, owner: Owner) -> bool:
        """Return whether an owner has ended. Call it only for an owner for which `has` is true."""
        pid = owner.get("pid")
        return not isinstance(pid, int) or started(pid) != owner.get("started")
