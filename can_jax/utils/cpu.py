"""The number of usable CPU cores, and worker processes that end with their parent."""

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

PROCESS = Path("/proc/self")


def usable_cores() -> int:
    """Return the number of CPU cores that this process can use.

    The number is the minimum of the process's CPU affinity and its container's CPU quota, rounded
    up.
    """
    return max(1, math.ceil(min(schedulable_cores(), cpu_quota())))


def schedulable_cores() -> int:
    """Return the number of cores in the CPU affinity of this process."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cpu_quota(process: Path = PROCESS) -> float:
    """Return the CPU quota of a process in cores, or infinity if it has none.

    The quotas of all parent groups also limit a Linux control group (cgroup). The result is
    therefore the smallest quota of the process's group and its parents.

    Args:
        process: The folder of the process in ``/proc``.
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
    """Yield the folder and mount point of each control group that can limit a process's CPU
    time."""
    try:
        lines = (process / "cgroup").read_text(errors="replace").splitlines()
        mounts = (process / "mountinfo").read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return
    # A line is "hierarchy:controllers:path"; version 2 has hierarchy 0 and no controllers.
    paths = {tuple(filter(None, names.split(","))): path for _, names, path in map(_split3, lines)}
    for mount in mounts:
        own, _, system = mount.partition(" - ")
        fields, (kind, *_, options) = own.split(), system.split() or [""]
        root, point = (name.replace(r"\040", " ") for name in fields[3:5])
        for names, path in paths.items():
            version_2 = kind == "cgroup2" and not names
            if version_2 or (kind == "cgroup" and "cpu" in names and "cpu" in options.split(",")):
                # In a container, `path` can be that on the host, of which only `root` is mounted.
                inner = os.path.relpath(path, root) if root != "/" else path.lstrip("/")
                group = Path(point) / ("" if inner.startswith("..") else inner)
                yield group if group.is_dir() else Path(point), Path(point)


def _split3(line: str) -> tuple[str, str, str]:
    """Return the three fields of a line of ``/proc/*/cgroup``. Missing fields are empty strings."""
    hierarchy, names, path = [*line.split(":", 2), "", ""][:3]
    return hierarchy, names, path


def _quotas_of(group: Path) -> Iterator[float]:
    """Yield the CPU quota of a control group in cores, from the files of cgroup v2 and of v1."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # no quota: no file, or "max"
        quota, period = (group / "cpu.max").read_text().split()
        yield int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = ((group / f"cpu.cfs_{n}_us").read_text() for n in ("quota", "period"))
        if int(quota) > 0:  # -1 is no quota
            yield int(quota) / int(period)


def end_with_parent() -> None:
    """Start a thread that ends this worker process as soon as its parent process has ended."""
    import multiprocessing.connection  # not at the top, because every start imports this module

    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
