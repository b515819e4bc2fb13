"""The import of TensorFlow, deferred until it is needed and without access to GPUs."""

import contextlib
import ctypes
import functools
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock, Thread
from types import ModuleType

from can_jax.utils.cpu import usable_cores
from can_jax.utils.environment import restored_environment
from can_jax.utils.errors import UserError
from can_jax.utils.extras import missing_package

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
SETTINGS = {
    LOG_LEVEL: "3",  # TensorFlow would log every undecodable image; the pipeline counts them.
    "TF_ENABLE_ONEDNN_OPTS": "0",  # oneDNN is not used here, and logs a notice.
    "TF_USE_LEGACY_KERAS": "1",
}
# Further variables that the import sets. JAX sets the first three on a TPU for its own telemetry,
# and the last one keeps child processes from reading HDF5 files by a plugin.
SET_BY_IMPORT = (
    "TPU_ML_PLATFORM", "TPU_ML_PLATFORM_VERSION", "ENABLE_RUNTIME_UPTIME_TELEMETRY",
    "HDF5_PLUGIN_PATH",
)  # fmt: skip
_IMPORT = Lock()  # Without it, a second thread would restore variables that the first has set.


@functools.cache
def tensorflow() -> ModuleType:
    """Import TensorFlow without access to GPUs, which JAX uses, and return the module.

    Raises:
        UserError: TensorFlow is not installed.
        ModuleNotFoundError: A package that TensorFlow requires is not installed.
    """
    try:
        with _IMPORT, _import_settings():
            _load_triton()
            import tensorflow as tf
    except ModuleNotFoundError as error:
        raise missing_package(error.name) or error from error

    threading = tf.config.threading
    # The calling program may have initialized TensorFlow already, or have set the threads.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    with contextlib.suppress(RuntimeError):
        # TensorFlow's default is all cores of the machine, even beyond a container's quota.
        if not threading.get_inter_op_parallelism_threads():
            threading.set_inter_op_parallelism_threads(usable_cores())
        if not threading.get_intra_op_parallelism_threads():
            threading.set_intra_op_parallelism_threads(usable_cores())
    return tf


def import_ahead() -> None:
    """Import TensorFlow in a background thread, so that other startup work can overlap with it."""

    def quietly() -> None:
        # A later call of `tensorflow` raises the error again. The import also fails if the process
        # ends meanwhile.
        with contextlib.suppress(ImportError, RuntimeError, UserError):
            tensorflow()

    Thread(target=quietly).start()


def _load_triton() -> None:
    """Load the shared library of Triton if it is installed.

    The libraries `timm` and `transformers`, and `torch.compile`, import Triton. Loading the library
    of Triton 3.8 after that of TensorFlow 2.21 ends the process with a segmentation fault; the
    other order works.
    """
    spec = importlib.util.find_spec("triton")
    for folder in (spec and spec.submodule_search_locations) or ():
        for library in Path(folder).glob("_C/libtriton*.so"):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(library))


@contextlib.contextmanager
def _import_settings() -> Iterator[None]:
    """Set environment variables that TensorFlow reads during its import; restore them afterwards.

    If the legacy Keras is selected but not installed, TensorFlow does not import Keras. Importing
    Keras would take most of the import time. `tf.keras` is available after the context ends. The
    environment variables are restored, so that child processes of the calling program do not
    inherit the changes.
    """
    with restored_environment(*SETTINGS, *SET_BY_IMPORT):
        if os.environ.get(LOG_LEVEL) == "1":  # JAX sets this level.
            del os.environ[LOG_LEVEL]
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        yield
