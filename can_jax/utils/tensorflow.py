"""The only door to TensorFlow: imported when data is first touched, and kept off the GPUs."""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from types import ModuleType

from can_jax.utils.cpu import usable_cores

LEGACY_KERAS = "TF_USE_LEGACY_KERAS"


@functools.cache
def tensorflow() -> ModuleType:
    """The TensorFlow module, unable to see an accelerator, which is JAX's to use."""
    # Every image that cannot be decoded would be reported, and we count them. JAX's default is 1.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # of no use here, and announces itself
    with _without_keras():
        import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    # TensorFlow counts all cores, also those that a container's quota leaves out.
    with contextlib.suppress(RuntimeError):  # somebody has used it before, with threads of its own
        tf.config.threading.set_inter_op_parallelism_threads(usable_cores())
        tf.config.threading.set_intra_op_parallelism_threads(usable_cores())
    return tf


def import_ahead() -> None:
    """Begin to import TensorFlow in a thread; who calls `tensorflow` then waits the less."""

    def quietly() -> None:
        # Who calls `tensorflow` is told. A process that ends meanwhile makes the import fail.
        with contextlib.suppress(ImportError, RuntimeError):
            tensorflow()

    threading.Thread(target=quietly).start()


@contextlib.contextmanager
def _without_keras() -> Iterator[None]:
    """Around TensorFlow's import, which imports Keras too, for longer than all else it does. One
    that asks for the old Keras, which is not installed, goes on without; afterwards `tf.keras`
    is there for who asks for it."""
    if LEGACY_KERAS in os.environ:
        yield
        return
    os.environ[LEGACY_KERAS] = "1"
    try:
        yield
    finally:
        os.environ.pop(LEGACY_KERAS, None)
