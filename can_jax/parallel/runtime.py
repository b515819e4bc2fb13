"""What this program runs on, written down beside its results."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-cpu", "numpy")


def version_of(package: str) -> str | None:
    """The installed version of a package, None without it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the checkout this package is imported from, `+changes` if it has any."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if not (root / ".git").exists():
        return None
    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def environment(mesh: Mesh) -> dict[str, Any]:
    """Versions, devices, mesh and commit, as plain JSON values."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {package: version_of(package) for package in PACKAGES},
        "commit": commit(),
        "processes": jax.process_count(),
        "devices": [f"{device.device_kind} {device.id}" for device in mesh.devices.flat],
        "mesh": dict(mesh.shape),
    }
