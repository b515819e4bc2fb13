"""TensorFlow as the calling program has it, which a stand-in plays."""

import os
import subprocess
import sys
from types import ModuleType
from unittest.mock import Mock

import pytest

from can_jax.utils import tensorflow as door
from can_jax.utils.cpu import usable_cores
from tests.helpers.runs import ROOT

NAMES = ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS", "TF_USE_LEGACY_KERAS")


def imported(monkeypatch, threads, initialized=False):
    """Return the settings of a stand-in after its import."""
    error = RuntimeError("cannot be modified after being initialized") if initialized else None
    setting = Mock(side_effect=error)
    config = Mock(set_visible_devices=setting)
    for name in ("inter", "intra"):
        setattr(config.threading, f"get_{name}_op_parallelism_threads", lambda: threads)
    stand_in = ModuleType("tensorflow")
    stand_in.config = config
    monkeypatch.setitem(sys.modules, "tensorflow", stand_in)
    door.tensorflow.__wrapped__()
    return config


@pytest.mark.parametrize("level", [None, "1", "0"])
def test_environment_is_the_same_after_the_import(monkeypatch, level):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    if level is not None:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    before = dict(os.environ)
    imported(monkeypatch, 0)
    assert dict(os.environ) == before
    with door._import_settings():
        assert [os.environ[name] for name in NAMES] == ["0" if level == "0" else "3", "0", "1"]


def test_import_keeps_the_environment():
    program = (
        "import os; from can_jax.utils.tensorflow import tensorflow; before = dict(os.environ); "
        "tensorflow(); print({n for n in os.environ if os.environ[n] != before.get(n)})"
    )
    environment = {n: v for n, v in os.environ.items() if n not in door.SET_BY_IMPORT}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.stdout in ("set()\n", "{'TF2_BEHAVIOR'}\n"), done.stderr


def test_threads_are_limited_unless_the_program_has_chosen_them(monkeypatch):
    set_threads = imported(monkeypatch, 0).threading.set_intra_op_parallelism_threads
    set_threads.assert_called_once_with(usable_cores())
    chosen = imported(monkeypatch, 7)
    chosen.threading.set_intra_op_parallelism_threads.assert_not_called()
    chosen.threading.set_inter_op_parallelism_threads.assert_not_called()


def test_tensorflow_may_be_initialized_already(monkeypatch):
    imported(monkeypatch, 0, initialized=True).set_visible_devices.assert_called_once_with(
        [], "GPU"
    )
