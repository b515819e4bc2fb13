"""Memory in huge pages, for which a command starts itself once more.

XLA's CPU backend takes a step's temporaries from the kernel and gives them back after it. In pages
of 4 KiB that costs a fifth of the step: each is emptied and entered anew. glibc asks for pages of
2 MiB only if it is told so before a program starts.
"""

import os
import sys
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def ask_for_huge_pages() -> None:
    """Start this program again with huge pages, if `python -m` was just given one of our commands
    and they would come of it. Who set ``GLIBC_TUNABLES``, to nothing even, is left alone."""
    starting = sys.argv[:1] == ["-m"]  # what it is until the module to run is found
    if not starting or TUNABLES in os.environ or not on_demand():
        return
    os.environ[TUNABLES] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def on_demand() -> bool:
    """Whether huge pages are given to who asks for them, and our C library, glibc 2.35 or newer,
    can ask."""
    try:
        kind, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        enabled = ENABLED.read_text()
    except (AttributeError, OSError, ValueError):  # not Linux, or not glibc
        return False
    release = tuple(int(part) for part in version.split(".")[:2])
    return kind == "glibc" and release >= (2, 35) and "[madvise]" in enabled
