"""Checks of the properties of this machine that affect a run, with remedies for problems."""

import importlib.util
import io
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from can_jax.data.decoding.open_image import open_image
from can_jax.distributed.hardware import attached_devices, matmul_flops, peak_flops
from can_jax.distributed.mesh import selected_platforms
from can_jax.distributed.runtime import processor, version_of
from can_jax.utils.cpu import schedulable_cores, usable_cores
from can_jax.utils.extras import (
    PACKAGES,
    fitting_extra,
    install_command,
    nvidia_driver,
    tpu_chips,
    unused_accelerator,
)
from can_jax.utils.files import user_cache

VERSIONS = (
    "jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "libtpu", "flax", "optax",
    "orbax-checkpoint", "numpy", "tensorflow-cpu", "tensorflow",
)  # fmt: skip
FEWEST_DESCRIPTORS = 4096  # for checkpoints of many arrays, and the readers of shards
SMALLEST_SHM = 2**30  # bytes; NCCL connects the GPUs of a machine by it
SMALLEST_DISK = 10 * 2**30  # bytes
REMOTE = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "fuse", "9p")
PHOTO = (500, 375)  # pixels, the size of a usual image of ImageNet
SECONDS = 0.5  # the shortest duration of a measurement
SLOW_SHARE = 0.3  # a matrix product below this fraction of the peak is slow


class Finding(NamedTuple):
    """A property of the machine.

    Attributes:
        name: The display name of the property, such as ``file descriptors``.
        value: The value as text.
        mend: The problem and its remedy as text; empty if there is no problem.
    """

    name: str
    value: str
    mend: str = ""


def devices() -> list[Finding]:
    """Return a `Finding` for each property of the devices, the driver, Python and the packages."""
    attached = attached_devices()
    memory = f", {gb(attached.memory)} each" if attached.memory else ""
    unused = ""
    if attached.platform == "cpu":
        unused = unused_accelerator(selected_platforms()) or ""
    versions = {name: version_of(name) for name in VERSIONS}
    missing = [PACKAGES[name] for name in PACKAGES if importlib.util.find_spec(name) is None]
    lack = ""
    if missing:
        lack = (
            f"not installed, but needed for training and evaluation: {', '.join(missing)}; run "
            f"{install_command(fitting_extra())}"
        )
    return [
        Finding("devices", f"{attached.count} x {attached.kind}{memory}", unused),
        Finding(
            "bfloat16 units",
            "yes" if attached.bfloat16 else "no; `can-jax train --data` then selects float32",
        ),
        Finding("NVIDIA driver", nvidia_driver() or "none"),
        Finding("TPU chips", str(len(tpu_chips()) or "none")),
        Finding("processor", processor()),
        Finding("Python", platform.python_version()),
        Finding("packages", ", ".join(f"{k} {v}" for k, v in versions.items() if v), lack),
    ]


def limits() -> list[Finding]:
    """Return a `Finding` for each resource: CPU cores, file descriptors, main memory and shared
    memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = ""
    if 0 <= soft < FEWEST_DESCRIPTORS:
        few = f"run `ulimit -n {FEWEST_DESCRIPTORS}` before a run: checkpoints open many files"
        if 0 <= hard < FEWEST_DESCRIPTORS:
            few = (
                f"the hard limit is {hard}: raise it in /etc/security/limits.conf or the container"
            )
    usable, cores = usable_cores(), schedulable_cores()
    found = [
        Finding("cores", f"{usable} of {cores}" if usable < cores else str(cores)),
        Finding("file descriptors", f"{soft} (at most {hard})", few),
    ]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found.append(Finding("memory", gb(memory)))
    shm = Path("/dev/shm")
    if shm.is_dir():
        size = shutil.disk_usage(shm).total
        small = ""
        if size < SMALLEST_SHM and jax.local_device_count() > 1 and jax.default_backend() == "gpu":
            small = "NCCL needs more shared memory for several GPUs: use docker run --shm-size=8g"
        found.append(Finding("shared memory", gb(size), small))
    return found


def file_systems() -> list[Finding]:
    """Return a `Finding` for each file system that a run uses, with its type and free space."""
    found = []
    folders = {"current folder": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    if cache := user_cache():
        folders["cache of programs"] = next(p for p in (cache, *cache.parents) if p.exists())
    for name, path in folders.items():
        kind, usage = file_system(path), shutil.disk_usage(path)
        mend = ""
        if not os.access(path, os.W_OK):
            mend = f"{path} cannot be written"
            if name.startswith("temporary"):
                mend += ": set TMPDIR to a writable folder"
            elif name.startswith("current"):
                mend += ": set a writable --workdir or --output for each command"
            else:
                mend += ", so each start compiles: set XDG_CACHE_HOME to a writable folder"
        elif usage.free < SMALLEST_DISK:
            mend = "a checkpoint of ViT-B takes 1.6 GB, and three are retained: free some space"
        elif name.startswith("cache") and kind.startswith(REMOTE):
            mend = "compiled programs load faster from a local disk: set XDG_CACHE_HOME to one"
        found.append(Finding(name, f"{path} ({kind}), {gb(usage.free)} free", mend))
    return found


def speeds() -> list[Finding]:
    """Measure the speeds of a matrix product, a copy to a device and JPEG decoding."""
    attached = attached_devices()
    dtype = "bfloat16" if attached.bfloat16 else "float32"
    size = 1024 if attached.platform == "cpu" else 8192
    rate = matmul_flops(dtype, size)
    slow, of_peak = "", ""
    if attached.bfloat16:  # The known peaks are those of 16-bit floats.
        peak = peak_flops(dtype)
        of_peak = f", {100 * rate / peak:.0f} % of the peak"
        if rate < SLOW_SHARE * peak:
            slow = "another process may use the device, or heat or power may throttle its clock"
    block = np.zeros(2**25, np.uint8)
    device = jax.local_devices()[0]
    copies = repeated(lambda: jax.block_until_ready(jax.device_put(block, device)))
    noise = np.random.default_rng(0).integers(0, 256, (PHOTO[1] // 8, PHOTO[0] // 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(PHOTO).save(file, "JPEG", quality=90)

    def decode() -> None:
        with open_image(file.getvalue()) as image:
            image.load()

    decoded = repeated(decode)
    return [
        Finding("matrix product", f"{rate / 1e12:.3g} TFLOP/s in {dtype}{of_peak}", slow),
        Finding("copy to a device", f"{copies * block.nbytes / 1e9:.3g} GB/s"),
        Finding(
            "decoding", f"{decoded:.0f} JPEGs/s per core by Pillow, {PHOTO[0]} x {PHOTO[1]} px"
        ),
    ]


def repeated(action: Callable[[], Any]) -> float:
    """Return the number of calls of an action per second, after one call to warm up."""
    action()
    start, times = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < SECONDS:
        action()
        times += 1
    return times / seconds


def file_system(path: Path) -> str:
    """Return the type of a path's file system, such as ``ext4``; ``unknown`` outside of Linux."""
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return "unknown"
    best, kind = "", "unknown"
    for line in lines:
        _, mount, name, *_ = line.split(" ")
        inside = str(path) == mount or str(path).startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, name
    return kind


def gb(size: int) -> str:
    """Convert a size in bytes to text in GB, such as ``1.6 GB``."""
    return f"{size / 1e9:.1f} GB"
