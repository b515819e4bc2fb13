"""The extras of an installation: which one fits a machine, and what is said if it is missing."""

import subprocess
import sys

import pytest

from can_jax.utils import extras
from can_jax.utils.errors import UserError

MODULE = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build\n"
    "GCC version:  gcc version 12.3.0\n"
)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a function that gives this machine TPU chips, or a driver of a version."""

    def has(driver=None, chips=()):
        path = tmp_path / "version"
        path.unlink(missing_ok=True)
        if driver:
            path.write_text(MODULE.format(driver))
        monkeypatch.setattr(extras, "DRIVER", path)
        monkeypatch.setattr(extras, "AMD", str(tmp_path / "no_amd"))
        monkeypatch.setattr(extras.shutil, "which", lambda name: None)
        monkeypatch.setattr(extras.glob, "glob", lambda p: list(chips) if "accel" in p else [])
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return has


@pytest.mark.parametrize(
    ("devices", "extra"),
    [
        ({}, "cpu"),
        ({"driver": "580.65.06"}, "cuda"),
        ({"driver": "550.54.15"}, "cuda12"),
        ({"chips": ["/dev/accel0"]}, "tpu"),
    ],
)
def test_extra_fits_the_devices_of_the_machine(machine, devices, extra):
    machine(**devices)
    assert extras.fitting_extra() == extra
    assert f"can_jax[{extra}]" in str(extras.missing_package("tensorflow.io"))
    assert extras.missing_package("tensorflowing") is None


def test_driver_is_asked_for_where_the_kernel_shows_no_file(machine, monkeypatch):
    machine()
    monkeypatch.setattr(extras.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    answer = subprocess.CompletedProcess([], 0, "535.104.05\n")
    monkeypatch.setattr(extras.subprocess, "run", lambda *_, **__: answer)
    assert extras.nvidia_driver() == "535.104.05"


def test_unused_accelerator_is_named_with_its_extra(machine, monkeypatch):
    machine("550.54.15")
    line = extras.unused_accelerator(None)
    assert line.startswith("NVIDIA's driver 550.54.15 is present, but JAX runs on the CPU")
    assert "pip install 'can_jax[cuda12]'" in line
    assert extras.unused_accelerator("cpu") is None  # The user selected the CPU.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert extras.unused_accelerator(None) is None  # The user hid the GPUs.
    machine(chips=["/dev/accel0", "/dev/accel1"])
    assert extras.unused_accelerator("").startswith("2 TPU chips are present")
    machine(chips=["/dev/accel0"])
    assert extras.unused_accelerator("").startswith("1 TPU chip is present")
    machine()
    assert extras.unused_accelerator(None) is None


def test_missing_tensorflow_is_reported_with_the_extra(machine, monkeypatch):
    machine("580.65.06")
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    message = r"TensorFlow, .* is not installed: pip install 'can_jax\[cuda\]'"
    with pytest.raises(UserError, match=message):
        extras.require_input()


# Stands for an environment without the extra: its packages cannot be imported.
WITHOUT = """
import importlib.abc, sys
ABSENT = {"tensorflow", "tensorflow_datasets", "tensorboard", "matplotlib", "pyarrow"}
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import importlib
for command in ("train", "evaluate", "export", "plan", "recipes", "selfcheck"):
    importlib.import_module(f"can_jax.cli.commands.{command}")
import can_jax.encoders.encoder
from can_jax.utils.errors import UserError
from can_jax.utils.tensorflow import tensorflow
try:
    tensorflow()
except UserError as error:
    print(error)
"""


def test_commands_are_imported_without_the_packages_of_the_input_pipeline():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install 'can_jax[" in done.stdout
