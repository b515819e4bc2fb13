"""The extras of this package's installation, and which of them fits this machine."""

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
# The packages of the extra `cpu`, which all extras for training include, by their modules.
PACKAGES = {
    "tensorflow": "TensorFlow",
    "tensorflow_datasets": "TensorFlow Datasets",
    "tensorboard": "TensorBoard",
    "matplotlib": "Matplotlib",
}
QUERY = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def nvidia_driver() -> str | None:
    """Return the version of NVIDIA's driver on this machine, or None if it has none."""
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
    """Return the device files of this machine's TPU chips."""
    return glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")


def fitting_extra() -> str:
    """Return the name of the extra that fits this machine's devices."""
    if tpu_chips():
        return "tpu"
    driver = nvidia_driver()
    if driver is None:
        return "cpu"
    return "cuda" if int(driver.split(".")[0]) >= CUDA13_DRIVER else "cuda12"


def install_command(extra: str) -> str:
    """Return the command that adds an extra to this installation."""
    return f"pip install 'can_jax[{extra}]'"


def missing_package(module: str | None) -> UserError | None:
    """Return the error for a module that could not be imported, or None if no extra has it.

    Args:
        module: The dotted name of the module.
    """
    package = (module or "").partition(".")[0]
    if package not in PACKAGES:
        return None
    return UserError(
        f"{PACKAGES[package]} is not installed, which training and evaluation need: "
        f"{install_command(fitting_extra())}"
    )


def require_input() -> None:
    """Check that the input pipeline of training and evaluation is installed.

    Raises:
        UserError: It is not; the message names the extra that fits this machine.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None and (lacks := missing_package(package)):
            raise lacks


def unused_accelerator(platforms: str | None) -> str | None:
    """Return a line about an accelerator that JAX does not use, or None if it has none.

    Call it only if JAX runs on the CPU.

    Args:
        platforms: The value of ``jax_platforms``, by which a user can select the CPU.
    """
    if "cpu" in (platforms or "").split(","):
        return None
    if chips := tpu_chips():
        name, extra = f"{len(chips)} TPU chips are present", "tpu"
    elif os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "NoDevFiles"):
        return None
    elif driver := nvidia_driver():
        name, extra = f"NVIDIA's driver {driver} is present", fitting_extra()
    elif os.path.exists(AMD):
        return "an AMD GPU is present, but JAX runs on the CPU: it needs JAX's plugin for ROCm"
    else:
        return None
    return (
        f"{name}, but JAX runs on the CPU: {install_command(extra)} adds the support, "
        "JAX_PLATFORMS=cpu selects the CPU without this warning"
    )
