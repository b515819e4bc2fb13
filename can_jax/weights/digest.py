"""A checksum that identifies a set of weights."""

import hashlib
from typing import Any

import jax
import numpy as np

from can_jax.distributed.sharding_rules import path_name


def sha256_of(parameters: Any) -> str:
    """Return the SHA-256 of a tree's paths and values as hexadecimal digits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
        digest.update(path_name(path).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()
