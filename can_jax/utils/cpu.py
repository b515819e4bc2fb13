"""Cores to work on, and workers that do not outlive the command which started them."""

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

PROCESS = Path("/proc/self")


def usable_cores() -> int:
    """Return how many cores this process may use.

    Its affinity and the CPU quota of its container, rounded up, can each allow fewer than there
    are.
    """
    return max(1, math.ceil(min(schedulable_cores(), cpu_quota())))


def schedulable_cores() -> int:
    """Return on how many cores this process may be scheduled, all at once or in turns."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cpu_quota(process: Path = PROCESS) -> float:
    """Return the CPU quota of a process in cores, infinity without one.

    A control group cannot use more than any group around it, so the smallest quota on the way up
    to the root counts.

    Args:
        process: the process's folder in ``/proc``.
    """
    quotas = [math.inf]
    for group, mount in _control_groups(process):
        while True:
            quotas += _quotas_of(group)
            if group in (mount, group.parent):
                break
            group = group.parent
    return min(quotas)


def _control_groups(process: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the folder of each control group that may limit a process, and its mount point."""
    try:
        lines = (process / "cgroup").read_text(errors="replace").splitlines()
        mounts = (process / "mountinfo").read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return
    # A line is "number:controllers:path"; version 2 has neither number nor controllers.
    paths = {tuple(filter(None, names.split(","))): path for _, names, path in map(_split3, lines)}
    for mount in mounts:
        own, _, system = mount.partition(" - ")
        fields, (kind, *_, options) = own.split(), system.split() or [""]
        root, point = (name.replace(r"\040", " ") for name in fields[3:5])
        for names, path in paths.items():
            version_2 = kind == "cgroup2" and not names
            if version_2 or (kind == "cgroup" and "cpu" in names and "cpu" in options.split(",")):
                # A container may see the path on its host, of which only `root` is mounted.
                inner = os.path.relpath(path, root) if root != "/" else path.lstrip("/")
                group = Path(point) / ("" if inner.startswith("..") else inner)
                yield group if group.is_dir() else Path(point), Path(point)


def _split3(line: str) -> tuple[str, str, str]:
    number, names, path = [*line.split(":", 2), "", ""][:3]
    return number, names, path


def _quotas_of(group: Path) -> Iterator[float]:
    """Yield the quota that a control group sets, in cores: of version 2, or of version 1."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # none, or "max"
        quota, period = (group / "cpu.max").read_text().split()
        yield int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = ((group / f"cpu.cfs_{n}_us").read_text() for n in ("quota", "period"))
        if int(quota) > 0:  # -1 is no quota
            yield int(quota) / int(period)


def end_with_parent() -> None:
    """To be called in a worker: end it when its parent is gone, however that came to its end."""
    import multiprocessing.connection  # here, as every start imports this module

    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
