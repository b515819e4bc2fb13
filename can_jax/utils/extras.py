"""Checks of the installed extras, and the choice of the extra that fits this machine."""

import glob
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from can_jax.utils.errors import UserError

DRIVER = Path("/proc/driver/nvidia/version")
AMD = "/dev/kfd"
CUDA13_DRIVER = 580  # the oldest major version of NVIDIA's driver that runs CUDA 13
# The names of packages in the extra `cpu`, which all extras for training include, by module name.
PACKAGES = {
    "tensorflow": "TensorFlow",
    "tensorflow_datasets": "TensorFlow Datasets",
    "tensorboard": "TensorBoard",
    "matplotlib": "Matplotlib",
}
QUERY = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def nvidia_driver() -> str | None:
    """Return the version of this machine's NVIDIA driver, or None without a driver."""
    try:
        text = DRIVER.read_text()
    except OSError:
        if shutil.which(QUERY[0]) is None:
            return None
        try:  # Windows Subsystem for Linux has the program, but not the file.
            text = subprocess.run(QUERY, capture_output=True, text=True, timeout=10).stdout
        except (OSError, subprocess.TimeoutExpired):
            return None
    version = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    return version[0] if version else None


def tpu_chips() -> list[str]:
    """Return the paths of the device files of this machine's TPU chips."""
    return glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")


def fitting_extra() -> str:
    """Return the extra to install on this machine: `tpu`, `cuda`, `cuda12` or `cpu`."""
    if tpu_chips():
        return "tpu"
    driver = nvidia_driver()
    if driver is None:
        return "cpu"
    return "cuda" if int(driver.split(".")[0]) >= CUDA13_DRIVER else "cuda12"


def install_command(extra: str) -> str:
    """Return the pip command that installs this package with an extra."""
    return f"pip install 'can_jax[{extra}]'"


def missing_package(module: str | None) -> UserError | None:
    """Return an error with the command that installs a missing module.

    Return None if the module does not belong to an extra for training.

    Args:
        module: The dotted name of the module that could not be imported.
    """
    package = (module or "").partition(".")[0]
    if package not in PACKAGES:
        return None
    return UserError(
        f"{PACKAGES[package]}, which training and evaluation need, is not installed: "
        f"{install_command(fitting_extra())}"
    )


def require_input() -> None:
    """Check that the packages of the input pipeline are installed.

    Raises:
        UserError: A package is missing. The message contains the command that installs the extra
            for this machine.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None and (lacks := missing_package(package)):
            raise lacks


def unused_accelerator(platforms: str | None) -> str | None:
    """Return a warning about an accelerator of this machine that JAX does not use, or None.

    Call this function only if JAX runs on the CPU.

    Args:
        platforms: The value of JAX's option ``jax_platforms``. If the option contains ``cpu``, None
            is returned.
    """
    if "cpu" in (platforms or "").split(","):
        return None
    if chips := tpu_chips():
        plural = "s are" if len(chips) > 1 else " is"
        name, extra = f"{len(chips)} TPU chip{plural} present", "tpu"
    elif os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "NoDevFiles"):
        return None
    elif driver := nvidia_driver():
        name, extra = f"NVIDIA's driver {driver} is present", fitting_extra()
    elif os.path.exists(AMD):
        return "an AMD GPU is present, but JAX runs on the CPU: install JAX's plugin for ROCm"
    else:
        return None
    return (
        f"{name}, but JAX runs on the CPU: run {install_command(extra)} to use the accelerator, or "
        "set JAX_PLATFORMS=cpu to use the CPU without this warning"
    )
