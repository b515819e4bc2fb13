"""The only door to TensorFlow: imported when data is first touched, and kept off the GPUs."""

import functools
import os
from types import ModuleType


@functools.cache
def tensorflow() -> ModuleType:
    """The TensorFlow module, unable to see an accelerator, which is JAX's to use."""
    # Every image that cannot be decoded would be reported, and we count them. JAX's default is 1.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # of no use here, and announces itself
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    return tf
