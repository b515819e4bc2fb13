"""Cores to work on, and workers that do not outlive the command which started them."""

import multiprocessing
import multiprocessing.connection
import os
import threading


def usable_cores() -> int:
    """How many cores this process may use, which in a container can be fewer than there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def end_with_parent() -> None:
    """To be called in a worker: end it when its parent is gone, however that came to its end."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
