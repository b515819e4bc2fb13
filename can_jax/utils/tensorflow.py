"""The import of TensorFlow, deferred until it is needed and without access to GPUs."""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from types import ModuleType

from can_jax.utils.cpu import usable_cores
from can_jax.utils.errors import UserError
from can_jax.utils.extras import missing_package

LEGACY_KERAS = "TF_USE_LEGACY_KERAS"


@functools.cache
def tensorflow() -> ModuleType:
    """Import TensorFlow without access to GPUs, which JAX uses, and return the module.

    Raises:
        UserError: TensorFlow is not installed.
    """
    # TensorFlow would log every undecodable image, which we count ourselves. JAX sets level 1.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # not used here, and it logs a notice
    try:
        with _without_keras():
            import tensorflow as tf
    except ModuleNotFoundError as error:
        raise missing_package(error.name) or error from error

    tf.config.set_visible_devices([], "GPU")
    # TensorFlow's default is all cores of the machine, even beyond a container's quota.
    with contextlib.suppress(RuntimeError):  # the caller has initialized TensorFlow already
        tf.config.threading.set_inter_op_parallelism_threads(usable_cores())
        tf.config.threading.set_intra_op_parallelism_threads(usable_cores())
    return tf


def import_ahead() -> None:
    """Import TensorFlow in a background thread, so that other startup work can overlap with it."""

    def quietly() -> None:
        # A later call of `tensorflow` raises the error again. The import also fails if the process
        # ends meanwhile.
        with contextlib.suppress(ImportError, RuntimeError, UserError):
            tensorflow()

    threading.Thread(target=quietly).start()


@contextlib.contextmanager
def _without_keras() -> Iterator[None]:
    """Let TensorFlow skip the import of Keras, which takes most of the time to import TensorFlow.

    The context sets an environment variable that makes TensorFlow look for the legacy Keras. If the
    legacy Keras is not installed, TensorFlow then imports no Keras. `tf.keras` is available after
    the context ends.
    """
    if LEGACY_KERAS in os.environ:
        yield
        return
    os.environ[LEGACY_KERAS] = "1"
    try:
        yield
    finally:
        os.environ.pop(LEGACY_KERAS, None)
